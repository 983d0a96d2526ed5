package registry

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/861fb494/build/internal/oci"
)

var (
	// ErrNotFound: the registry has no such image or blob.
	ErrNotFound = errors.New("not found")
	// ErrUnauthorized: the registry wants credentials, or others. Some say so
	// of images that do not exist, too.
	ErrUnauthorized = errors.New("access denied")
	// ErrRateLimited: the registry wants fewer requests.
	ErrRateLimited = errors.New("too many requests")
	// ErrUnreachable: nobody answered at the registry's address.
	ErrUnreachable = errors.New("cannot be reached")
	// ErrSchema1: the image is in a form that Docker gave up.
	ErrSchema1 = errors.New("the manifest is of Docker's schema 1, which is not supported; pull and push it with a recent Docker to convert it")
)

// DigestError is content that is not what it was asked for as.
type DigestError struct {
	Host      string // that sent it
	Want, Got oci.Digest
}

func (e *DigestError) Error() string {
	return fmt.Sprintf("%s sent wrong content: digest %s instead of %s", e.Host, e.Got, e.Want)
}

// requestError is a failed request in words for users. It is the kind of
// failure, one of the errors above, as well as its cause.
type requestError struct {
	text string
	kind error // may be nil
	err  error
}

func (e *requestError) Error() string { return e.text }

func (e *requestError) Unwrap() []error {
	if e.kind == nil {
		return []error{e.err}
	}
	return []error{e.kind, e.err}
}

// mirrorsError is the failure of a registry after those of its mirrors.
type mirrorsError struct {
	err     error
	mirrors []error
}

func withMirrors(err error, mirrors []error) error {
	if len(mirrors) == 0 {
		return err
	}
	return &mirrorsError{err, mirrors}
}

func (e *mirrorsError) Error() string {
	s := make([]string, len(e.mirrors))
	for i, m := range e.mirrors {
		s[i] = m.Error()
	}
	return fmt.Sprintf("%v (%s)", e.err, strings.Join(s, "; "))
}

func (e *mirrorsError) Unwrap() []error { return append([]error{e.err}, e.mirrors...) }

// explain puts the failure of an action on ref, or on the part of it that what
// names, at e into words: "pull node:x: not found in docker.io". Of a mirror the
// words are short, as they come in brackets after the registry's.
func explain(ref oci.Reference, e endpoint, action, what string, err error) error {
	kind, text := classify(e, action, err)
	if e.mirrorOf != "" {
		text = "mirror " + e.name + ": " + text
	} else {
		if what != "" {
			text = what + ": " + text
		}
		text = action + " " + ref.Familiar() + ": " + text
	}
	return &requestError{text: text, kind: kind, err: err}
}

func classify(e endpoint, action string, err error) (kind error, text string) {
	login := "build login"
	if e.name != DockerHub {
		login += " " + e.name
	}
	var status *transport.Error
	if errors.As(err, &status) {
		return classifyStatus(e, action, login, err, status)
	}
	var digest *DigestError
	var cert *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &digest), errors.Is(err, ErrSchema1):
		return nil, err.Error()
	case unreachable(err):
		return ErrUnreachable, fmt.Sprintf("%s cannot be reached: %v", e.name, err)
	case errors.As(err, &cert):
		return nil, fmt.Sprintf("the certificate of %s is not trusted: %v (name its authority as ca in the configuration of registry %q)", e.name, cert.Err, e.name)
	case errors.Is(err, http.ErrSchemeMismatch), errors.As(err, &record):
		return nil, fmt.Sprintf("%s does not speak TLS (allow plain HTTP with --insecure-registry %s)", e.name, e.name)
	}
	return nil, fmt.Sprintf("%s: %v", e.name, err)
}

func classifyStatus(e endpoint, action, login string, err error, status *transport.Error) (kind error, text string) {
	var who statusError
	if s := (*statusError)(nil); errors.As(err, &s) {
		who = *s
	}
	switch status.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		denies := fmt.Sprintf("%s denies access: %d %s", e.name, status.StatusCode, http.StatusText(status.StatusCode))
		switch {
		case who.keychain != nil:
			text = fmt.Sprintf("%s (the credentials for it could not be read: %v)", denies, who.keychain)
		case who.user != "":
			text = fmt.Sprintf("%s for user %q (log in anew with %q)", denies, who.user, login)
		case action == "pull":
			text = fmt.Sprintf("%s; the image may not exist, or needs a login (%q)", denies, login)
		default:
			text = fmt.Sprintf("%s (log in with %q)", denies, login)
		}
		return ErrUnauthorized, text
	case http.StatusNotFound:
		if action == "pull" {
			return ErrNotFound, "not found in " + e.name
		}
		return ErrNotFound, fmt.Sprintf("no such repository in %s: %s", e.name, said(status))
	case http.StatusTooManyRequests:
		text = e.name + " wants fewer requests for now (rate limit): " + said(status)
		if who.user == "" {
			text += fmt.Sprintf(" (%q may raise the limit)", login)
		}
		return ErrRateLimited, text
	}
	return nil, fmt.Sprintf("%s answered: %s", e.name, said(status))
}

// said is what the server gave for a reason, in one line.
func said(e *transport.Error) string {
	var s []string
	for _, d := range e.Errors {
		s = append(s, strings.ToLower(string(d.Code))+": "+d.Message)
	}
	if len(s) == 0 {
		return fmt.Sprintf("%d %s", e.StatusCode, http.StatusText(e.StatusCode))
	}
	return strings.Join(strings.Fields(strings.Join(s, "; ")), " ")
}
