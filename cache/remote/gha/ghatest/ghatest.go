// Package ghatest is a stand-in for the cache service of GitHub Actions, for
// tests: its calls, and the store of blobs behind them.
package ghatest

import (
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
)

// Token is what requests must bear.
const Token = "job's token"

// Service is the service. The zero value has no entries.
type Service struct {
	// Fail, if not nil, is asked before each request; a status that is not 0 is
	// the answer.
	Fail func(r *http.Request) int

	mu      sync.Mutex
	entries []*entry // the newest last
}

type entry struct {
	key, version string
	blocks       map[string][]byte
	data         []byte
	done         bool
}

// Len is how many entries are finished.
func (s *Service) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, e := range s.entries {
		if e.done {
			n++
		}
	}
	return n
}

// Blocks is how many blocks the largest upload came in.
func (s *Service) Blocks() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, e := range s.entries {
		n = max(n, len(e.blocks))
	}
	return n
}

// ServeHTTP implements http.Handler.
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.Fail != nil {
		if status := s.Fail(r); status != 0 {
			w.WriteHeader(status)
			return
		}
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if n, ok := strings.CutPrefix(r.URL.Path, "/blob/"); ok {
		i, err := strconv.Atoi(n)
		if err != nil || i >= len(s.entries) || r.URL.Query().Get("sig") != "a/b+c=" || r.Header.Get("Authorization") != "" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		s.blob(w, r, s.entries[i], body)
		return
	}
	if r.Header.Get("Authorization") != "Bearer "+Token {
		refuse(w, http.StatusUnauthorized, "unauthenticated")
		return
	}
	method, ok := strings.CutPrefix(r.URL.Path, "/twirp/github.actions.results.api.v1.CacheService/")
	var req struct {
		Key     string   `json:"key"`
		Version string   `json:"version"`
		Restore []string `json:"restore_keys"`
		Size    string   `json:"size_bytes"`
	}
	if err := json.Unmarshal(body, &req); err != nil || !ok || r.Method != http.MethodPost || req.Key == "" || len(req.Key) > 512 || strings.Contains(req.Key, ",") || req.Version == "" {
		refuse(w, http.StatusBadRequest, "invalid_argument")
		return
	}
	answer := s.call(method, r.Host, req.Key, req.Version, req.Restore, req.Size)
	if answer == nil {
		refuse(w, http.StatusConflict, "already_exists")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer)
}

func refuse(w http.ResponseWriter, status int, code string) {
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"code":%q,"msg":"no"}`, code)
}

func (s *Service) call(method, host, key, version string, restore []string, size string) map[string]any {
	at := func(i int) string { return fmt.Sprintf("http://%s/blob/%d?sv=1&sig=a%%2Fb%%2Bc%%3D", host, i) }
	switch method {
	case "CreateCacheEntry":
		for _, e := range s.entries {
			if e.key == key && e.version == version {
				return nil
			}
		}
		s.entries = append(s.entries, &entry{key: key, version: version, blocks: map[string][]byte{}})
		return map[string]any{"ok": true, "signed_upload_url": at(len(s.entries) - 1)}
	case "FinalizeCacheEntryUpload":
		for _, e := range s.entries {
			if e.key == key && e.version == version {
				e.done = strconv.Itoa(len(e.data)) == size
				return map[string]any{"ok": e.done, "entry_id": "1"}
			}
		}
	case "GetCacheEntryDownloadURL":
		for i := len(s.entries) - 1; i >= 0; i-- {
			e := s.entries[i]
			match := e.key == key
			for _, p := range restore {
				match = match || strings.HasPrefix(e.key, p)
			}
			if match && e.done && e.version == version {
				return map[string]any{"ok": true, "signed_download_url": at(i), "matched_key": e.key}
			}
		}
	}
	return map[string]any{"ok": false}
}

// blob is the store of blobs, as far as it is used.
func (s *Service) blob(w http.ResponseWriter, r *http.Request, e *entry, body []byte) {
	switch q := r.URL.Query(); {
	case r.Method == http.MethodGet:
		w.Header().Set("Content-Length", strconv.Itoa(len(e.data)))
		_, _ = w.Write(e.data)
		return
	case q.Get("comp") == "block":
		e.blocks[q.Get("blockid")] = body
	case q.Get("comp") == "blocklist":
		var list struct {
			Latest []string `xml:"Latest"`
		}
		if xml.Unmarshal(body, &list) != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		e.data = nil
		for _, id := range list.Latest {
			e.data = append(e.data, e.blocks[id]...)
		}
	case r.Header.Get("X-Ms-Blob-Type") != "BlockBlob":
		w.WriteHeader(http.StatusBadRequest)
		return
	default:
		e.data = body
	}
	w.WriteHeader(http.StatusCreated)
}
