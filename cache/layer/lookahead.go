package layer

import (
	"os"
	"path"
	"slices"
)

// listing is a directory of a layer as it was read.
type listing struct {
	dir         *os.File // nil: it could not be opened
	names, gone []string // see listDir
	hides       bool
	found       []found // of the first names
	err         error
}

func (l *listing) close() {
	if l.dir != nil {
		l.dir.Close()
	}
}

// list reads the directory name in dir, whose path is p.
func (d *differ) list(dir *os.File, name, p string) *listing {
	f, err := openDir(int(dir.Fd()), name, p)
	if err != nil {
		return &listing{err: err}
	}
	return d.read(f, p)
}

// read reads the open directory f, whose path is p.
func (d *differ) read(f *os.File, p string) *listing {
	l := &listing{dir: f}
	if l.names, l.gone, l.hides, l.err = listDir(f, d.o.Markers); l.err == nil {
		l.found, l.err = scanAll(int(f.Fd()), p, l.names[:min(len(l.names), maxScan)])
	}
	return l
}

// lookahead reads the directories in a directory while what comes before them is
// compared: reading is waiting for the kernel mostly.
type lookahead struct {
	d       *differ // whose slots say how many more may be read ahead
	dir     *os.File
	todo    []found         // what comes after those that are waiting
	waiting []chan *listing // of directories that are read, in order
}

// maxAhead bounds how many directories are read ahead in all of a walk; each is
// open, and has up to maxScan names.
const maxAhead = 4

// take is the next directory, which is called name and whose path is p. It is the
// caller's to close.
func (a *lookahead) take(name, p string) *listing {
	if len(a.waiting) == 0 {
		i := slices.IndexFunc(a.todo, func(f found) bool { return f.Path == p })
		a.todo = a.todo[i+1:]
		a.start()
		return a.d.list(a.dir, name, p)
	}
	l := <-a.waiting[0]
	a.waiting = a.waiting[1:]
	a.d.slots++
	a.start()
	return l
}

// start has further directories read, as far as slots go.
func (a *lookahead) start() {
	for ; a.d.slots > 0 && len(a.todo) > 0; a.todo = a.todo[1:] {
		if !a.todo[0].IsDir() {
			continue
		}
		p, c := a.todo[0].Path, make(chan *listing, 1)
		go func() { c <- a.d.list(a.dir, path.Base(p), p) }()
		a.d.slots--
		a.waiting = append(a.waiting, c)
	}
}

// stop waits for what nobody will take.
func (a *lookahead) stop() {
	for _, c := range a.waiting {
		(<-c).close()
		a.d.slots++
	}
	a.waiting = nil
}
