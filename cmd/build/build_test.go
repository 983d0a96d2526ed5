package main

import (
	"reflect"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/861fb494/build/cache/remote"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/llb"
)

// parseBuild parses a build command's line, the context last.
func parseBuild(args ...string) (buildOptions, error) {
	var f buildFlags
	set := pflag.NewFlagSet("build", pflag.ContinueOnError)
	f.declare(set)
	if err := set.Parse(args); err != nil {
		return buildOptions{}, err
	}
	return f.options(set.Arg(0))
}

func TestBuildOptions(t *testing.T) {
	t.Setenv("FROM_ENV", "value of env")
	t.Setenv("BUILDKIT_PROGRESS", "")
	minusOne := -1
	for _, tt := range []struct {
		name string
		args []string
		want func(*buildOptions) // changes what "build ." means
	}{
		{"nothing", nil, func(*buildOptions) {}},
		{"file and target", []string{"-f", "a/Dockerfile", "--target=test"}, func(o *buildOptions) {
			o.File, o.Frontend.Target = "a/Dockerfile", "test"
		}},
		{"Dockerfile from standard input", []string{"-f-"}, func(o *buildOptions) { o.File = "-" }},
		{"arguments", []string{"--build-arg", "A=1=2", "--build-arg", "FROM_ENV", "--build-arg", "NOT_THERE_AT_ALL", "--build-arg", "B=", "--build-arg", "A=x,y"}, func(o *buildOptions) {
			o.Frontend.Args = map[string]string{"A": "x,y", "FROM_ENV": "value of env", "B": ""}
		}},
		{"labels", []string{"--label", "a=b c", "--label", "FROM_ENV"}, func(o *buildOptions) {
			o.Frontend.Labels = map[string]string{"a": "b c", "FROM_ENV": ""}
		}},
		{"contexts", []string{"--build-context", "docker.io/library/alpine:latest=docker-image://busybox", "--build-context", "src=../src=1"}, func(o *buildOptions) {
			o.Frontend.Contexts = map[string]string{"alpine": "docker-image://busybox", "src": "../src=1"}
		}},
		{"platforms", []string{"--platform", "linux/amd64,linux/arm64/v8", "--platform", "arm64", "--platform=linux/arm"}, func(o *buildOptions) {
			o.Frontend.Platforms = []oci.Platform{{OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "arm64"}, {OS: "linux", Architecture: "arm", Variant: "v7"}}
		}},
		{"check", []string{"--check"}, func(o *buildOptions) { o.Frontend.Call = callOption{Name: "check"} }},
		{"call lint", []string{"--call=lint"}, func(o *buildOptions) { o.Frontend.Call = callOption{Name: "check"} }},
		{"call for programs", []string{"--check", "--call=check,format=json,ignorestatus=true"}, func(o *buildOptions) {
			o.Frontend.Call = callOption{Name: "check", JSON: true, IgnoreStatus: true}
		}},
		{"call outline", []string{"--call=outline,format=text"}, func(o *buildOptions) { o.Frontend.Call = callOption{Name: "outline"} }},
		{"call build", []string{"--call=build,format=json"}, func(o *buildOptions) { o.Frontend.Call = callOption{} }},
		{"cache", []string{"--pull", "--no-cache", "--no-cache-filter", "a,b"}, func(o *buildOptions) {
			o.Cache = cacheOptions{Pull: true, NoCache: true, NoCacheStages: []string{"a", "b"}}
		}},
		{"hosts", []string{"--add-host", "a:10.0.0.1", "--add-host", "b=[::1]", "--add-host", "c:::1", "--add-host", "d:host-gateway"}, func(o *buildOptions) {
			o.Steps.Hosts = []llb.Host{{Name: "a", Addr: "10.0.0.1"}, {Name: "b", Addr: "::1"}, {Name: "c", Addr: "::1"}, {Name: "d", Addr: "host-gateway"}}
		}},
		{"limits", []string{"--ulimit", "nofile=1024:2048", "--ulimit", "core=-1", "--shm-size=1g", "-m", "512m", "--cpus", "1.5"}, func(o *buildOptions) {
			o.Steps.Ulimits = []llb.Ulimit{{Name: "nofile", Soft: 1024, Hard: 2048}, {Name: "core", Soft: -1, Hard: -1}}
			o.Steps.ShmSize, o.Steps.Memory, o.Steps.CPUs = 1<<30, 512<<20, 1.5
		}},
		{"surroundings of steps", []string{"--network=host", "--allow", "network.host", "--allow=security.insecure", "--cgroup-parent=x", "--oci-runtime=runc", "--storage-driver=plain"}, func(o *buildOptions) {
			o.Steps.Network, o.Steps.Allow, o.Steps.CgroupParent = "host", []string{"network.host", "security.insecure"}, "x"
			o.Steps.OCIRuntime, o.Driver = "runc", "plain"
		}},
		{"secrets", []string{"--secret", "id=a,src=/f", "--secret", "id=b,env=X", "--secret", "id=FROM_ENV", "--secret", "id=c", "--secret", "type=env,id=d,src=Y", "--secret", `"id=e","source=a,b"`}, func(o *buildOptions) {
			o.Session.Secrets = []secretOption{{ID: "a", File: "/f"}, {ID: "b", Env: "X"}, {ID: "FROM_ENV", Env: "FROM_ENV"}, {ID: "c", File: "c"}, {ID: "d", Env: "Y"}, {ID: "e", File: "a,b"}}
		}},
		{"ssh", []string{"--ssh", "default", "--ssh", "k=/a,/b"}, func(o *buildOptions) {
			o.Session.SSH = []sshOption{{ID: "default"}, {ID: "k", Paths: []string{"/a", "/b"}}}
		}},
		{"a socket as it is", []string{"--ssh", "x=/sock,raw=true"}, func(o *buildOptions) {
			o.Session.SSH = []sshOption{{ID: "x", Paths: []string{"/sock"}, Raw: true}}
		}},
		{"devices", []string{"--allow", "device=v.com/gpu=0", "--allow=device=v.com/net=*,alias=net", "--allow", "device,network.host"}, func(o *buildOptions) {
			o.Steps.Allow = []string{"device", "network.host"}
			o.Steps.AllowDevices = map[string]string{"v.com/gpu=0": "v.com/gpu=0", "v.com/net=*": "v.com/net=*", "net": "v.com/net=*"}
		}},
		{"inline cache", []string{"--build-arg", "BUILDKIT_INLINE_CACHE=1"}, func(o *buildOptions) {
			o.Frontend.Args = map[string]string{"BUILDKIT_INLINE_CACHE": "1"}
			o.Cache.To = []remote.Spec{{Type: remote.TypeInline}}
		}},
		{"squash", []string{"--squash"}, func(o *buildOptions) { o.Output.Squash = true }},
		{"load", []string{"--load"}, func(o *buildOptions) { o.Output.Load = true }},
		{"reproducible", []string{"--reproducible"}, func(o *buildOptions) { o.Output.Reproducible = true }},
		{"tags", []string{"-t", "web", "--tag=localhost:5000/a/b:1", "--push"}, func(o *buildOptions) {
			o.Output.Tags = []oci.Reference{{Domain: "docker.io", Path: "library/web", Tag: "latest"}, {Domain: "localhost:5000", Path: "a/b", Tag: "1"}}
			o.Output.Push = true
		}},
		{"outputs", []string{"-o", "out", "-o-", "--output=type=oci,dest=x.tar,compression=zstd"}, func(o *buildOptions) {
			o.Output.Outputs = []outputOption{{Type: "local", Dest: "out"}, {Type: "tar", Dest: "-"}, {Type: "oci", Dest: "x.tar", Attrs: map[string]string{"compression": "zstd"}}}
		}},
		{"compression", []string{"--compression=zstd", "--compression-level=-1"}, func(o *buildOptions) {
			o.Output.Compression, o.Output.CompressionLevel = "zstd", &minusOne
		}},
		{"annotations", []string{"--annotation", "a.b/c:d=e", "--annotation", "manifest:x=y"}, func(o *buildOptions) {
			o.Output.Annotations = map[string]string{"a.b/c:d": "e", "x": "y"}
		}},
		{"quiet", []string{"-q", "--iidfile=i", "--metadata-file=m"}, func(o *buildOptions) {
			o.Output.Quiet, o.Progress, o.Output.IIDFile, o.Output.MetadataFile = true, "quiet", "i", "m"
		}},
		{"without effect", []string{"--rm", "--force-rm", "--rm=false", "--provenance=false", "--sbom=false"}, func(*buildOptions) {}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := buildOptions{
				Context:  ".",
				Frontend: frontendOptions{Args: map[string]string{}, Labels: map[string]string{}, Contexts: map[string]string{}},
				Steps:    stepOptions{Network: "default"},
				Output:   outputOptions{Annotations: map[string]string{}},
				Progress: "auto",
				Driver:   "auto",
			}
			tt.want(&want)
			got, err := parseBuild(append(tt.args, ".")...)
			for i := range got.Output.Outputs {
				if len(got.Output.Outputs[i].Attrs) == 0 {
					got.Output.Outputs[i].Attrs = nil
				}
			}
			if len(got.Cache.NoCacheStages) == 0 {
				got.Cache.NoCacheStages = nil
			}
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("build %q =\n%+v, %v, want\n%+v", tt.args, got, err, want)
			}
		})
	}
}

func TestBuildOptionErrors(t *testing.T) {
	t.Setenv("BUILDKIT_PROGRESS", "")
	for _, tt := range []struct {
		args string
		want string // part of the error
	}{
		{"--build-arg =x", "--build-arg"},
		{"--build-context x", "want NAME=VALUE"},
		{"--build-context A=x", "lowercase"},
		{"--platform beos", `--platform: platform "beos": want OS/ARCH`},
		{"--platform linux/amd64/v1/x", "want OS/ARCH"},
		{"--platform linux/arm64,", "want OS/ARCH"},
		{"--call targets,format=yaml", "want json or text"},
		{"--call targets,x", `"x" is not known`},
		{"--call what", "want one of build, check"},
		{"--check --call=build", "exclude each other"},
		{"--cache-from type=floppy", "type \"floppy\" is not known"},
		{"--provenance=mode=max", "only --provenance=false"},
		{"--provenance", "only --provenance=false"},
		{"--sbom=true", "only --sbom=false"},
		{"--network bridge", "want one of default, none, host"},
		{"--add-host a", "want NAME:ADDRESS"},
		{"--add-host a:b", "no IP address"},
		{"--allow everything", "want network.host, security.insecure or device"},
		{"--ulimit nofile", "--ulimit"},
		{"--ulimit nofile=2:1", "--ulimit"},
		{"--ulimit what=1", "--ulimit"},
		{"--shm-size lots", "--shm-size"},
		{"--shm-size=-1", "--shm-size"},
		{"--cpus -0.5", "--cpus"},
		{"--memory 512", "no process starts in less than 6m"},
		{"--cpus NaN", "--cpus"},
		{"--secret src=x", "no id"},
		{"--secret id=x,what=y", `unknown "what"`},
		{"--secret id=x,src=a,env=b", "exclude each other"},
		{"--secret id=x,type=vault", "want file or env"},
		{"--ssh =x", "--ssh"},
		{"--ssh default=", "--ssh"},
		{"--ssh a --ssh a=/k", "--ssh a is given twice"},
		{"--ssh a=/k,raw=maybe", "want true or false"},
		{"--ssh a=/k,/l,raw=1", "raw needs one socket"},
		{"--allow device=", "want device=NAME"},
		{"--allow device=x,also=y", "want device=NAME"},
		{"--allow device=x,alias=", "want device=NAME"},
		{"-t UPPER", "lowercase"},
		{"-t a@sha256:" + strings.Repeat("0", 64), "cannot be given a digest"},
		{"-o type=what", `unknown type "what"`},
		{"-o dest=x", "no type"},
		{"-o type=local", "no directory"},
		{"-o type=local,dest=-", "standard output"},
		{"--push", "needs a name"},
		{"--compression lz4", "want one of gzip, zstd"},
		{"--progress loud", "want one of auto"},
		{"--storage-driver zfs", "want one of auto"},
		{"--annotation x", "want NAME=VALUE"},
		{"--annotation index:a=b", "only annotations of the manifest"},
		{"-f- -", "both be standard input"},
	} {
		args := strings.Fields(tt.args)
		if args[len(args)-1] != "-" {
			args = append(args, ".")
		}
		if _, err := parseBuild(args...); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("build %s: error %v, want %q in it", tt.args, err, tt.want)
		}
	}
}

func TestBuildProgressFromEnvironment(t *testing.T) {
	t.Setenv("BUILDKIT_PROGRESS", "plain")
	if o, err := parseBuild("."); err != nil || o.Progress != "plain" {
		t.Errorf("BUILDKIT_PROGRESS=plain: progress %q, %v, want plain", o.Progress, err)
	}
	if o, err := parseBuild("--progress=tty", "."); err != nil || o.Progress != "tty" {
		t.Errorf("BUILDKIT_PROGRESS=plain, --progress=tty: progress %q, %v, want tty", o.Progress, err)
	}
}
