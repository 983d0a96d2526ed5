package s3

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"slices"
	"strings"
)

// emptySum is the SHA-256 of nothing.
const emptySum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// sign adds the headers of AWS Signature Version 4 to a request whose body has
// the SHA-256 sum, in hexadecimal digits:
// https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html.
func (b *Bucket) sign(r *http.Request, sum string) {
	at := b.now().UTC()
	stamp, day := at.Format("20060102T150405Z"), at.Format("20060102")
	r.Header.Set("X-Amz-Date", stamp)
	r.Header.Set("X-Amz-Content-Sha256", sum)
	if b.o.SessionToken != "" {
		r.Header.Set("X-Amz-Security-Token", b.o.SessionToken)
	}
	host := r.Host
	if host == "" {
		host = r.URL.Host
	}
	names, values := []string{"host"}, map[string]string{"host": host}
	for k, v := range r.Header {
		name := strings.ToLower(k)
		names = append(names, name)
		values[name] = strings.TrimSpace(strings.Join(v, ","))
	}
	slices.Sort(names)
	var canonical strings.Builder
	canonical.WriteString(r.Method + "\n" + escapePath(r.URL.Path) + "\n" + query(r) + "\n")
	for _, n := range names {
		canonical.WriteString(n + ":" + values[n] + "\n")
	}
	signed := strings.Join(names, ";")
	canonical.WriteString("\n" + signed + "\n" + sum)
	hashed := sha256.Sum256([]byte(canonical.String()))
	scope := day + "/" + b.o.Region + "/s3/aws4_request"
	text := "AWS4-HMAC-SHA256\n" + stamp + "\n" + scope + "\n" + hex.EncodeToString(hashed[:])

	key := []byte("AWS4" + b.o.SecretKey)
	for _, part := range []string{day, b.o.Region, "s3", "aws4_request"} {
		key = mac(key, part)
	}
	r.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential="+b.o.AccessKey+"/"+scope+
		", SignedHeaders="+signed+", Signature="+hex.EncodeToString(mac(key, text)))
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

// query is the canonical query: sorted, each name with a value.
func query(r *http.Request) string {
	var list []string
	for name, values := range r.URL.Query() {
		for _, v := range values {
			list = append(list, escape(name, false)+"="+escape(v, false))
		}
	}
	slices.Sort(list)
	return strings.Join(list, "&")
}

func escapePath(p string) string { return escape(p, true) }

// escape leaves as they are the characters that the signature's rules leave, and
// slashes if they are to stay.
func escape(s string, slashes bool) string {
	const hexDigits = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9',
			c == '-', c == '_', c == '.', c == '~', slashes && c == '/':
			b.WriteByte(c)
		default:
			b.WriteByte('%')
			b.WriteByte(hexDigits[c>>4])
			b.WriteByte(hexDigits[c&15])
		}
	}
	return b.String()
}
