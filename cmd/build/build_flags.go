package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/861fb494/build/cache/remote"
	"github.com/861fb494/build/internal/oci"
)

// buildFlags holds the build command's flags as they were given. Names and
// forms are docker build's; see options for what they mean.
type buildFlags struct {
	plain   buildOptions // the flags that need no parsing, in their place
	lists   map[string]*[]string
	shmSize string
	memory  string
	cpus    string
	level   int
	check   bool
	call    string
	quiet   bool

	provenance, sbom string
	set              *pflag.FlagSet
}

// declare declares the flags on set.
func (f *buildFlags) declare(set *pflag.FlagSet) {
	f.set = set
	f.lists = map[string]*[]string{}
	list := func(name, short, usage string) {
		f.lists[name] = set.StringArrayP(name, short, nil, usage+" (repeatable)")
	}
	o := &f.plain

	set.StringVarP(&o.File, "file", "f", "", "the Dockerfile's `path`; - for standard input (default CONTEXT/Dockerfile)")
	set.StringVar(&o.Frontend.Target, "target", "", "build this `stage`, not the last one")
	list("build-arg", "", "value of an ARG, as `NAME=VALUE`, or NAME for the environment's")
	list("label", "", "label of the image, as `NAME=VALUE`")
	list("build-context", "", "further context, as `NAME=VALUE`")
	list("platform", "", "`platform` to build for, such as linux/arm64; several with commas")
	set.StringVar(&f.call, "call", "build", "`what` to do: build, check for mistakes, or list outline (parameters) or targets;\nfor programs with ,format=json")
	set.BoolVar(&f.check, "check", false, "look for mistakes and build nothing; --call=check")

	set.BoolVar(&o.Cache.Pull, "pull", false, "ask the registry for newer base images")
	set.BoolVar(&o.Cache.Locked, "locked", false, "build from the lock file beside the Dockerfile ('build lock'); fail for what is not in it")
	set.BoolVar(&o.Cache.Offline, "offline", false, "send no request to anybody; fail for what is not here")
	set.BoolVar(&o.Cache.NoCache, "no-cache", false, "run each step, cached or not")
	set.StringSliceVar(&o.Cache.NoCacheStages, "no-cache-filter", nil, "do so for these `stages`")
	set.StringSliceVar(&o.Cache.ExpectCached, "expect-cached", nil, "fail, and say why, if a step of these `stages` would run; without stages, if any would")
	set.Lookup("expect-cached").NoOptDefVal = allStages
	list("cache-from", "", "take results of steps from this cache, as `type=TYPE,NAME=VALUE,...`, or a name in a registry")
	list("cache-to", "", "put results of steps there: type=registry, local, inline, s3 or gha, as `type=TYPE,NAME=VALUE,...`")

	set.StringVar(&o.Steps.Network, "network", "default", "`network` of RUN steps: default, none or host")
	list("add-host", "", "further line of /etc/hosts in RUN steps, as `NAME:ADDRESS`; host-gateway is this host")
	list("ulimit", "", "resource limit of RUN steps, as `NAME=SOFT[:HARD]`")
	set.StringVar(&f.shmSize, "shm-size", "", "`size` of /dev/shm in RUN steps (default 64m)")
	set.StringVarP(&f.memory, "memory", "m", "", "memory limit of each RUN step, as a `size` such as 512m")
	set.StringVar(&f.cpus, "cpus", "", "`number` of processors' time for each RUN step, such as 1.5")
	set.StringVar(&o.Steps.CgroupParent, "cgroup-parent", "", "`cgroup` above those of RUN steps")
	set.StringVar(&o.Steps.OCIRuntime, "oci-runtime", "", "run steps by this installed OCI `runtime`: runc, crun, or a path")
	list("security-opt", "", "the `option` no-new-privileges: set-user-ID programs such as sudo give RUN steps no more rights")
	list("allow", "", "allow an `entitlement`: network.host, security.insecure, device, or device=NAME for one")

	list("secret", "", "secret for RUN --mount=type=secret, as `id=NAME[,src=FILE|,env=VARIABLE]`")
	list("ssh", "", "agent or keys for RUN --mount=type=ssh, as `default|NAME[=SOCKET|KEY,...]`")

	list("tag", "t", "`name` of the image")
	list("output", "o", "where the result goes, as `type=TYPE[,dest=PATH]`, or a directory")
	set.BoolVar(&o.Output.Push, "push", false, "push the image under its names")
	set.BoolVar(&o.Output.Squash, "squash", false, "make the layers that this build adds one")
	set.BoolVar(&o.Output.Reproducible, "reproducible", false, "make the same image wherever and whenever: files are not later than SOURCE_DATE_EPOCH,\nwhich is 0 where nothing sets it")
	set.BoolVar(&o.Output.Load, "load", false, "have the image in the local store, as without --output, also with one")
	list("annotation", "", "annotation of the manifest, as `NAME=VALUE`")
	set.StringVar(&o.Output.IIDFile, "iidfile", "", "write the image's id to `file`")
	set.StringVar(&o.Output.MetadataFile, "metadata-file", "", "write what the build yielded to `file`, as JSON")
	set.BoolVarP(&f.quiet, "quiet", "q", false, "print the image's id and nothing else")
	set.StringVar(&o.Output.Compression, "compression", "", "`method` to compress layers that are put out: gzip (the default), zstd or uncompressed")
	set.IntVar(&f.level, "compression-level", 0, "the compressor's `level`: gzip 0 to 9, zstd 1 to 22")
	set.StringVar(&f.provenance, "provenance", "", "not supported yet: only `false` is taken")
	set.StringVar(&f.sbom, "sbom", "", "not supported yet: only `false` is taken")
	for _, name := range []string{"provenance", "sbom"} {
		set.Lookup(name).NoOptDefVal = "true"
	}

	set.StringVar(&o.Progress, "progress", "auto", "`mode` in which progress is shown: auto, plain, tty, quiet or rawjson (BUILDKIT_PROGRESS)")
	set.StringVar(&o.Driver, "storage-driver", "auto", "`driver` that keeps snapshots: auto, overlay or plain")
	set.Bool("rm", true, "accepted and without effect: nothing is left to remove")
	set.Bool("force-rm", false, "accepted and without effect")
}

// ofBuild marks the build's flags in the commands that have them too.
const ofBuild = "of the build"

// declareAgain declares the flags for another command, whose help need not list
// them.
func (f *buildFlags) declareAgain(set *pflag.FlagSet) {
	f.declare(set)
	set.VisitAll(func(flag *pflag.Flag) { flag.Annotations = map[string][]string{ofBuild: nil} })
}

// options is what the flags and the one argument mean. Its errors are the
// caller's mistakes.
func (f *buildFlags) options(buildContext string) (buildOptions, error) {
	o := f.plain
	o.Context = buildContext
	for _, step := range []func(*buildOptions) error{f.unsupported, f.words, f.frontend, f.caches, f.steps, f.session, f.output} {
		if err := step(&o); err != nil {
			return buildOptions{}, err
		}
	}
	if o.Context == "-" && o.File == "-" {
		return buildOptions{}, errors.New("context and Dockerfile cannot both be standard input")
	}
	return o, nil
}

// unsupported refuses what docker build has and this one does not have yet.
func (f *buildFlags) unsupported(*buildOptions) error {
	for name, value := range map[string]string{"provenance": f.provenance, "sbom": f.sbom} {
		off := value == "disabled=true"
		if b, err := strconv.ParseBool(value); err == nil && !b {
			off = true
		}
		if f.set.Changed(name) && !off {
			return fmt.Errorf("--%s is not supported yet; only --%s=false is accepted", name, name)
		}
	}
	return nil
}

// words checks the flags whose values are one of a few.
func (f *buildFlags) words(o *buildOptions) error {
	var err error
	if o.Frontend.Call, err = parseCall(f.call); err != nil {
		return err
	}
	if f.check {
		if f.set.Changed("call") && o.Frontend.Call.Name != "check" {
			return fmt.Errorf("--check and --call=%s exclude each other", f.call)
		}
		o.Frontend.Call.Name = "check"
	}
	if v := os.Getenv("BUILDKIT_PROGRESS"); v != "" && !f.set.Changed("progress") {
		o.Progress = v
	}
	for _, w := range []struct {
		flag, value string
		words       []string
	}{
		{"network", o.Steps.Network, []string{"default", "none", "host"}},
		{"progress", o.Progress, []string{"auto", "plain", "tty", "quiet", "rawjson"}},
		{"storage-driver", o.Driver, []string{"auto", "overlay", "plain"}},
		{"compression", cmp.Or(o.Output.Compression, "gzip"), []string{"gzip", "zstd", "uncompressed"}},
	} {
		if !slices.Contains(w.words, w.value) {
			return fmt.Errorf("--%s %q: want one of %s", w.flag, w.value, strings.Join(w.words, ", "))
		}
	}
	for _, a := range *f.lists["allow"] {
		if d, ok := strings.CutPrefix(a, "device="); ok {
			if err := o.Steps.allowDevice(d); err != nil {
				return err
			}
			continue
		}
		for a := range strings.SplitSeq(a, ",") {
			if a != "network.host" && a != "security.insecure" && a != "device" {
				return fmt.Errorf("--allow %q: want network.host, security.insecure or device", a)
			}
			o.Steps.Allow = append(o.Steps.Allow, a)
		}
	}
	return nil
}

func (f *buildFlags) frontend(o *buildOptions) (err error) {
	if o.Frontend.Args, err = parsePairs("build-arg", *f.lists["build-arg"], os.LookupEnv); err != nil {
		return err
	}
	// As docker buildx has it: https://reproducible-builds.org/specs/source-date-epoch/.
	if v := os.Getenv("SOURCE_DATE_EPOCH"); v != "" {
		if _, ok := o.Frontend.Args["SOURCE_DATE_EPOCH"]; !ok {
			o.Frontend.Args["SOURCE_DATE_EPOCH"] = v
		}
	}
	empty := func(string) (string, bool) { return "", true }
	if o.Frontend.Labels, err = parsePairs("label", *f.lists["label"], empty); err != nil {
		return err
	}
	if o.Frontend.Contexts, err = parseContexts(*f.lists["build-context"]); err != nil {
		return err
	}
	o.Frontend.Platforms, err = parsePlatforms(*f.lists["platform"])
	return err
}

func (f *buildFlags) steps(o *buildOptions) (err error) {
	for _, v := range *f.lists["add-host"] {
		h, err := parseHost(v)
		if err != nil {
			return err
		}
		o.Steps.Hosts = append(o.Steps.Hosts, h)
	}
	for _, v := range *f.lists["ulimit"] {
		u, err := parseUlimit(v)
		if err != nil {
			return err
		}
		o.Steps.Ulimits = append(o.Steps.Ulimits, u)
	}
	for _, v := range *f.lists["security-opt"] {
		switch v {
		case "no-new-privileges", "no-new-privileges:true", "no-new-privileges=true":
			o.Steps.NoNewPrivileges = true
		case "no-new-privileges:false", "no-new-privileges=false":
			o.Steps.NoNewPrivileges = false
		default:
			return fmt.Errorf("--security-opt %q: only no-new-privileges is supported", v)
		}
	}
	if o.Steps.ShmSize, err = parseSize("shm-size", f.shmSize); err != nil {
		return err
	}
	if o.Steps.Memory, err = parseMemory(f.memory); err != nil {
		return err
	}
	o.Steps.CPUs, err = parseCPUs(f.cpus)
	return err
}

func (f *buildFlags) caches(o *buildOptions) error {
	if o.Cache.Offline && o.Cache.Pull {
		return errors.New("--offline and --pull exclude each other")
	}
	for _, way := range []struct {
		flag   string
		export bool
		to     *[]remote.Spec
	}{{"cache-from", false, &o.Cache.From}, {"cache-to", true, &o.Cache.To}} {
		for _, v := range *f.lists[way.flag] {
			s, err := parseCache(way.flag, v, way.export)
			if err != nil {
				return err
			}
			*way.to = append(*way.to, s)
		}
	}
	inline, err := strconv.ParseBool(o.Frontend.Args["BUILDKIT_INLINE_CACHE"])
	if err == nil && inline && !slices.ContainsFunc(o.Cache.To, func(s remote.Spec) bool { return s.Type == remote.TypeInline }) {
		o.Cache.To = append(o.Cache.To, remote.Spec{Type: remote.TypeInline})
	}
	return nil
}

func (f *buildFlags) session(o *buildOptions) error {
	for _, v := range *f.lists["secret"] {
		s, err := parseSecret(v, os.LookupEnv)
		if err != nil {
			return err
		}
		o.Session.Secrets = append(o.Session.Secrets, s)
	}
	for _, v := range *f.lists["ssh"] {
		s, err := parseSSH(v)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(o.Session.SSH, func(other sshOption) bool { return other.ID == s.ID }) {
			return fmt.Errorf("--ssh %s is given twice", s.ID)
		}
		o.Session.SSH = append(o.Session.SSH, s)
	}
	return nil
}

func (f *buildFlags) output(o *buildOptions) (err error) {
	for _, v := range *f.lists["tag"] {
		r, err := oci.ParseReference(v)
		if err != nil {
			return fmt.Errorf("--tag: %w", err)
		}
		if r.Digest != "" {
			return fmt.Errorf("--tag %q: an image cannot be given a digest as its name", v)
		}
		o.Output.Tags = append(o.Output.Tags, r)
	}
	for _, v := range *f.lists["output"] {
		out, err := parseOutput(v)
		if err != nil {
			return err
		}
		o.Output.Outputs = append(o.Output.Outputs, out)
	}
	if o.Output.Annotations, err = parseAnnotations(*f.lists["annotation"]); err != nil {
		return err
	}
	if o.Output.Push && len(o.Output.Tags) == 0 {
		return errors.New("--push needs a name to push to: add --tag NAME")
	}
	if f.quiet {
		o.Output.Quiet, o.Progress = true, "quiet"
	}
	if f.set.Changed("compression-level") {
		o.Output.CompressionLevel = &f.level
	}
	return nil
}
