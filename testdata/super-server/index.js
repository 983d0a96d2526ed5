// A small HTTP service: answers each request with what was asked for.
const http = require('node:http');

const port = Number(process.env.PORT || 8080);
const server = http.createServer((request, response) => {
  response.setHeader('content-type', 'text/plain');
  response.end(`super-server says hello to ${request.method} ${request.url}\n`);
});
server.listen(port, process.env.HOST, () => console.log(`super-server listens on port ${server.address().port}`));

for (const signal of ['SIGINT', 'SIGTERM']) {
  process.on(signal, () => server.close(() => process.exit(0)));
}
