package llb

import "github.com/861fb494/build/internal/oci"

func (Source) op() {}
func (Exec) op()   {}
func (File) op()   {}
func (Merge) op()  {}

// Schemes of a Source.
const (
	Scratch  = "scratch" // an empty tree
	Registry = "image"   // an image; Ref is its full name
	Layout   = "layout"  // an image of an OCI layout; Ref is "name of the layout@digest or :tag"
	Local    = "local"   // a directory of the user's; Ref is the context's name: "context", or a named context's
	Git      = "git"     // Ref is the remote as written
	HTTP     = "http"    // Ref is the URL
)

// Source is a tree from outside. It has no inputs.
type Source struct {
	Scheme string
	Ref    string
	// Digest is what the source is pinned to: an image manifest's digest, the
	// content digest of the selected files, a commit (as "sha1:…" or
	// "sha256:…"), a file's sha256. Empty until it is pinned.
	Digest   oci.Digest
	Platform oci.Platform // of an image

	// Of a Local: which files are selected. A source that several COPY
	// instructions could share is one node for each of them, so that each
	// depends on its own files only.
	Select Select
	// Of an HTTP source: the file that it yields, and its metadata.
	Filename string
	Mode     uint32 // permission bits; 0: 0600
	UID, GID int
	Checksum oci.Digest // demanded by the user
	// Of a Git source.
	Git GitOptions
}

// Select says which files of a local context a step can reach. The zero value
// is all of them.
type Select struct {
	// Paths are the sources of a COPY or a bind mount, as cleaned, absolute
	// paths of the context. They may have wildcards if Wildcards is set.
	Paths     []string
	Wildcards bool
	Excludes  []string // patterns of --exclude, in the syntax of .dockerignore
	Parents   bool     // Paths have "**" and "/./" with the meaning of COPY --parents
}

// GitOptions selects what is checked out.
type GitOptions struct {
	Ref            string // branch, tag, commit or full reference; empty: the default branch
	Subdir         string
	KeepDir        bool // leave .git in the tree
	SkipSubmodules bool
	Checksum       string // commit, or a prefix of it, that the ref must be at
}

// Exec runs a process. Input 0 is the root filesystem, the result is that
// filesystem as changed; mounts name further inputs.
type Exec struct {
	Args         []string
	Env          []string // "NAME=value", in order
	Dir          string   // working directory
	User         string   // as in USER: "name", "uid:gid", …; looked up in the root
	Hostname     string
	Network      string // "" or NetworkDefault, NetworkNone, NetworkHost
	Security     string // "" or SecuritySandbox, SecurityInsecure
	Mounts       []Mount
	Hosts        []Host // further lines of /etc/hosts
	Devices      []Device
	Ulimits      []Ulimit
	ShmSize      int64 // bytes; 0: 64 MiB
	CgroupParent string
	Stdin        []byte // what the process reads; nil: nothing
	// TTL of the result in seconds, of RUN --no-cache=ttl; 0: for ever.
	TTL int64
}

// Values of Exec.Network and Exec.Security.
const (
	NetworkDefault   = "default"
	NetworkNone      = "none"
	NetworkHost      = "host"
	SecuritySandbox  = "sandbox"
	SecurityInsecure = "insecure"
)

// Mount types.
const (
	MountBind   = "bind"
	MountCache  = "cache"
	MountTmpfs  = "tmpfs"
	MountSecret = "secret"
	MountSSH    = "ssh"
)

// Mount is a mount of an Exec, as RUN --mount has it.
type Mount struct {
	Type     string
	Target   string // absolute
	Input    int    // of a bind, or the first content of a cache; 0: none (input 0 is the root)
	Source   string // path in Input
	ReadOnly bool
	CacheID  string // of a cache
	Sharing  string // of a cache: "shared", "private", "locked"
	ID       string // of a secret or an ssh socket
	Env      string // of a secret: the variable that holds it; Target may then be empty
	Required bool
	UID, GID int
	Mode     uint32 // permission bits, with ModeSet
	ModeSet  bool
	Size     int64 // of a tmpfs, bytes; 0: the kernel's default
}

// Host is a line of /etc/hosts.
type Host struct{ Name, Addr string }

// Device is a device asked for by RUN --device, in CDI's naming.
type Device struct {
	Name     string
	Required bool
}

// Ulimit is a resource limit in the form of docker build --ulimit.
type Ulimit struct {
	Name       string // "nofile"
	Soft, Hard int64  // -1: unlimited
}

// File changes files without running anything: the actions, in order, applied
// to input 0. One File node makes one layer.
type File struct {
	Actions []Action
}

// Action is one of Copy, Mkfile and Mkdir.
type Action interface{ action() }

func (Copy) action()   {}
func (Mkfile) action() {}
func (Mkdir) action()  {}

// Owner is "user", "user:group", ":group" or numeric forms, looked up in the
// tree that is changed; empty means 0:0 for a Copy from a context and, with
// Copy.Keep, the owner that the source has.
type Owner string

// Copy copies from an input.
type Copy struct {
	Input     int      // index of the source
	Sources   []string // paths in it, absolute and cleaned; wildcards allowed where Wildcards is set
	Dest      string   // absolute; a trailing "/" makes it a directory
	Owner     Owner
	Keep      bool   // keep the source's owner where Owner is empty (COPY --from)
	Mode      string // octal ("0644") or symbolic ("u=rwX,go=rX"); empty: the source's
	Wildcards bool
	Parents   bool     // COPY --parents
	Excludes  []string // patterns in the syntax of .dockerignore
	Unpack    bool     // ADD: archives among the sources are extracted, recognised by content
}

// Mkfile writes a file.
type Mkfile struct {
	Path  string
	Data  []byte
	Mode  string // as Copy.Mode; empty: 0644
	Owner Owner
}

// Mkdir makes a directory and its parents.
type Mkdir struct {
	Path  string
	Mode  uint32 // permission bits
	Owner Owner  // of each directory made
}

// Merge is its inputs' layers, one input upon another, in order. It makes no
// layer of its own. Inputs after the first are made on Scratch: their layers
// mean the same upon any other.
type Merge struct{}
