package admin

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"net/http"
	"time"
)

//go:embed page
var pages embed.FS

// file is one file of the page, as it is in the binary.
type file struct {
	path, contentType, tag string
	content                []byte
}

var files = []file{
	embedded("/{$}", "index.html", "text/html; charset=utf-8"),
	embedded("/page.css", "page.css", "text/css; charset=utf-8"),
	embedded("/page.js", "page.js", "text/javascript; charset=utf-8"),
	embedded("/chart.js", "chart.js", "text/javascript; charset=utf-8"),
	embedded("/icon.svg", "icon.svg", "image/svg+xml"),
}

func embedded(path, name, contentType string) file {
	content, err := pages.ReadFile("page/" + name)
	if err != nil {
		panic(err) // it is in the binary, or the binary is not built
	}
	sum := sha256.Sum256(content)
	return file{path: path, contentType: contentType, tag: `"` + hex.EncodeToString(sum[:8]) + `"`, content: content}
}

// ServeHTTP lets a browser keep the file as long as it asks each time whether it has changed: after
// a rollout the page is the new one.
func (f file) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", f.contentType)
	w.Header().Set("Cache-Control", "no-cache")
	w.Header().Set("ETag", f.tag)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(f.content))
}
