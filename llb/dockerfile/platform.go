package dockerfile

import (
	"runtime"
	"slices"

	"github.com/containerd/platforms"

	"github.com/861fb494/build/internal/oci"
)

func normalize(p oci.Platform) oci.Platform { return platforms.Normalize(p) }

// setPlatforms reads Options' platforms.
func (l *lowering) setPlatforms() {
	l.machine = l.opts.BuildPlatform
	if l.machine.OS == "" {
		l.machine.OS = "linux"
	}
	if l.machine.Architecture == "" {
		l.machine.Architecture = runtime.GOARCH
	}
	l.machine = normalize(l.machine)
	l.platform = l.opts.Platform
	if l.implicit = l.platform.OS == "" && l.platform.Architecture == ""; l.implicit {
		l.platform = l.machine
	}
}

// platformArgs are the ARGs that tell of platforms; build arguments override them.
func (l *lowering) platformArgs(target string) env {
	b, t := l.machine, l.platform
	var e env
	for _, kv := range [][2]string{
		{"BUILDPLATFORM", platforms.Format(b)},
		{"BUILDOS", b.OS},
		{"BUILDOSVERSION", b.OSVersion},
		{"BUILDARCH", b.Architecture},
		{"BUILDVARIANT", b.Variant},
		{"TARGETPLATFORM", platforms.FormatAll(t)},
		{"TARGETOS", t.OS},
		{"TARGETOSVERSION", t.OSVersion},
		{"TARGETARCH", t.Architecture},
		{"TARGETVARIANT", t.Variant},
		{"TARGETSTAGE", target},
	} {
		v, ok := l.args[kv[0]]
		if !ok {
			v = kv[1]
		}
		e = e.set(kv[0], v)
	}
	return e
}

// setPlatform says in an image's configuration what it was built for.
func setPlatform(img *oci.Image, p oci.Platform) {
	same := p.OS == img.OS && p.Architecture == img.Architecture
	img.OS, img.Architecture = p.OS, p.Architecture
	if p.Variant != "" || !same {
		img.Variant = p.Variant
	}
	if p.OSVersion != "" || !same {
		img.OSVersion = p.OSVersion
	}
	if p.OSFeatures != nil {
		img.OSFeatures = slices.Clone(p.OSFeatures)
	}
}

// crossing is "->arm64" for steps that run on base and build for what TARGET*
// variables in e say, if that differs.
func crossing(base oci.Platform, e env) string {
	target, ok := e.targetPlatform()
	if !ok {
		return ""
	}
	if target.OS == "" {
		target.OS = base.OS
	}
	if target.Architecture == "" {
		target.Architecture = base.Architecture
	}
	p := normalize(target)
	switch {
	case p.OS != base.OS:
		return "->" + platforms.FormatAll(p)
	case p.Architecture != base.Architecture && p.Variant != "":
		return "->" + p.Architecture + "/" + p.Variant
	case p.Architecture != base.Architecture:
		return "->" + p.Architecture
	}
	return ""
}

func (e env) targetPlatform() (p oci.Platform, ok bool) {
	if v, set := e.Get("TARGETPLATFORM"); set {
		if p, err := platforms.Parse(v); err == nil {
			return p, true
		}
	}
	for name, field := range map[string]*string{
		"TARGETOS": &p.OS, "TARGETARCH": &p.Architecture, "TARGETVARIANT": &p.Variant,
	} {
		if v, set := e.Get(name); set {
			*field, ok = v, true
		}
	}
	return p, ok
}
