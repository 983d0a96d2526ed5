// Package torture has the tests that kill builds, fail their system calls,
// damage their state directory and run many of them at once, and then demand
// that the next build yields what one in a fresh directory does. They run the
// real binary with a real registry; see "make torture".
package torture
