package registry

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// tlsConfig is r's certificates and those in the directories of name below
// dirs, as https://docs.docker.com/engine/security/certificates/ has them.
// custom reports whether there are any.
func (r Registry) tlsConfig(name string, dirs []string) (conf *tls.Config, custom bool, err error) {
	for _, d := range dirs {
		r.CertDirs = append(r.CertDirs[:len(r.CertDirs):len(r.CertDirs)], filepath.Join(d, name))
	}
	for _, d := range r.CertDirs {
		if err := r.addDir(d); err != nil {
			return nil, false, err
		}
	}
	conf = &tls.Config{MinVersion: tls.VersionTLS12}
	if len(r.CA) > 0 {
		if conf.RootCAs, err = x509.SystemCertPool(); err != nil {
			conf.RootCAs = x509.NewCertPool()
		}
	}
	for _, p := range r.CA {
		pem, err := os.ReadFile(p)
		if err != nil {
			return nil, false, fmt.Errorf("read certificate authority: %w", err)
		}
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, false, fmt.Errorf("read certificate authority: %s has no certificate in PEM", p)
		}
	}
	for _, k := range r.KeyPairs {
		pair, err := tls.LoadX509KeyPair(k.Cert, k.Key)
		if err != nil {
			return nil, false, fmt.Errorf("read client certificate %s: %w", k.Cert, err)
		}
		conf.Certificates = append(conf.Certificates, pair)
	}
	return conf, len(r.CA)+len(r.KeyPairs) > 0, nil
}

// addDir adds the certificates in dir, which need not exist.
func (r *Registry) addDir(dir string) error {
	list, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	if err != nil {
		return err
	}
	r.CA, r.KeyPairs = r.CA[:len(r.CA):len(r.CA)], r.KeyPairs[:len(r.KeyPairs):len(r.KeyPairs)]
	for _, e := range list {
		p := filepath.Join(dir, e.Name())
		switch filepath.Ext(p) {
		case ".crt":
			r.CA = append(r.CA, p)
		case ".cert":
			r.KeyPairs = append(r.KeyPairs, KeyPair{Cert: p, Key: strings.TrimSuffix(p, ".cert") + ".key"})
		}
	}
	return nil
}

// address is the IP address that a registry's name is, if it is one.
func address(name string) (netip.Addr, bool) {
	if h, _, err := net.SplitHostPort(name); err == nil {
		name = h
	}
	ip, err := netip.ParseAddr(strings.Trim(name, "[]"))
	return ip.Unmap(), err == nil
}

// loopback reports whether a registry's name, with or without port, is this
// machine.
func loopback(name string) bool {
	host, _, _ := strings.Cut(name, ":")
	ip, ok := address(name)
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || ok && ip.IsLoopback()
}

// privateIP reports whether a registry's name is an address of a private
// network.
func privateIP(name string) bool {
	ip, ok := address(name)
	return ok && (ip.IsPrivate() || ip.IsLinkLocalUnicast())
}
