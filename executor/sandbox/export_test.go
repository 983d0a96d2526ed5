package sandbox

// SetInit makes another program than this one the init of containers.
func (o *OCI) SetInit(path string) { o.init = path }

// StartAgain makes this program the first process of all of n's sandboxes, as it is
// where the kernel executes no stub.
func (n *Native) StartAgain() { n.noStub.Store(true) }
