package tree

import "github.com/861fb494/build/internal/oci"

// Snapshot is a tree of a driver.
type Snapshot struct {
	Root oci.Mount // mounts it; Target is empty
	Tree *Tree     // reads it, and writes it where it was prepared; Close it
}
