package sandbox

// SetInit makes another program than this one the init of containers.
func (o *OCI) SetInit(path string) { o.init = path }
