package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
)

// The protocol of credential helpers:
// https://github.com/docker/docker-credential-helpers#development.

// errNoCredentials is what helpers print where they know nothing of a server.
const errNoCredentials = "credentials not found in native keychain"

// secret is what helpers are given and give.
type secret struct {
	ServerURL string
	Username  string
	Secret    string
}

func runHelper(ctx context.Context, name, verb, stdin string) ([]byte, error) {
	if strings.ContainsAny(name, "/\\") {
		return nil, fmt.Errorf("credential helper %q: not a name", name)
	}
	cmd := exec.CommandContext(ctx, "docker-credential-"+name, verb)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		// Helpers tell errors on standard output.
		said := strings.TrimSpace(out.String() + errs.String())
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && said != "" {
			err = errors.New(said)
		}
		return nil, fmt.Errorf("credential helper %s: %w", name, err)
	}
	return out.Bytes(), nil
}

// helperGet is the zero value where the helper knows nothing.
func helperGet(ctx context.Context, name, server string) (authn.AuthConfig, error) {
	out, err := runHelper(ctx, name, "get", server)
	if err != nil {
		if strings.Contains(err.Error(), errNoCredentials) {
			return authn.AuthConfig{}, nil
		}
		return authn.AuthConfig{}, err
	}
	var s secret
	if err := json.Unmarshal(out, &s); err != nil {
		return authn.AuthConfig{}, fmt.Errorf("credential helper %s: %w", name, err)
	}
	if s.Username == "<token>" {
		return authn.AuthConfig{IdentityToken: s.Secret}, nil
	}
	return authn.AuthConfig{Username: s.Username, Password: s.Secret}, nil
}

func helperStore(ctx context.Context, name, server, user, password string) error {
	in, err := json.Marshal(secret{ServerURL: server, Username: user, Secret: password})
	if err != nil {
		return err
	}
	_, err = runHelper(ctx, name, "store", string(in))
	return err
}

// helperErase is no error where the helper knows nothing.
func helperErase(ctx context.Context, name, server string) error {
	_, err := runHelper(ctx, name, "erase", server)
	if err != nil && strings.Contains(err.Error(), errNoCredentials) {
		return nil
	}
	return err
}
