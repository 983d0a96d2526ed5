package main

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// stage makes stage i: it can use the bases and the stages before it.
func (g *generator) stage(i int) Stage {
	s := Stage{From: fmt.Sprintf("base:%d", g.IntN(len(g.c.Bases)))}
	shell := true // there is a busybox
	switch {
	case i > 0 && g.chance(30):
		s.From = fmt.Sprintf("stage:%d", g.IntN(i))
	case g.chance(12):
		s.From, shell = "scratch", false
		if g.chance(60) {
			s.Instrs = append(s.Instrs, Instr{Op: "COPY", From: "base:0", Args: []string{"/bin"}, Dest: "/bin"})
			shell = true
		}
	}
	if kind, from := deref(s.From); kind == "stage" {
		shell = g.shell(from)
	}
	for range 1 + g.IntN(7) {
		in := g.instr(i)
		if !shell && (in.Op == "RUN" || in.Op == "ONBUILD") {
			continue
		}
		s.Instrs = append(s.Instrs, in)
	}
	return s
}

// shell reports whether stage i can RUN.
func (g *generator) shell(i int) bool {
	s := g.c.Stages[i]
	switch kind, from := deref(s.From); kind {
	case "stage":
		return g.shell(from)
	case "scratch":
		return len(s.Instrs) > 0 && s.Instrs[0].Dest == "/bin"
	}
	return true
}

func (g *generator) instr(i int) Instr {
	switch n := g.IntN(100); {
	case n < 38:
		return g.copy(i)
	case n < 48:
		return g.addArchive()
	case n < 76:
		if p := g.often(25, 16); p != g {
			return p.run(-1)
		}
		return g.run(i)
	case n < 82:
		return Instr{Op: "WORKDIR", Args: []string{pick(g, g.short(), strings.TrimPrefix(g.short(), "/"), "/$FROMBASE/w", "x/")}}
	case n < 86:
		return Instr{Op: "USER", Args: []string{pick(g, "bob", "0", "1000:2000", "root", "12:staff", "bob:staff")}}
	case n < 90:
		return Instr{Op: "ENV", Args: []string{"V", pick(g, g.short(), "a b", "${FROMBASE:-none}")}}
	case n < 93:
		return Instr{Op: "ARG", Args: []string{"A", pick(g, g.name(), "$FROMBASE")}}
	case n < 95:
		return Instr{Op: "VOLUME", Args: []string{g.short()}}
	case n < 97:
		return Instr{Op: pick(g, "CMD", "ENTRYPOINT"), Args: []string{"/bin/sh"}}
	case n < 98:
		return Instr{Op: "LABEL", Args: []string{"l", g.name()}}
	}
	trigger := g.run(0)
	if g.chance(50) {
		trigger = g.copy(0)
	}
	trigger.Inline = nil // heredocs do not fit into triggers
	if trigger.Form == "heredoc" {
		trigger.Form = "exec"
	}
	if trigger.Op == "COPY" && len(trigger.Args) == 0 {
		trigger.Args = []string{"."}
	}
	return Instr{Op: "ONBUILD", Trigger: &trigger}
}

// other is a reference to an image or an earlier stage, or the context.
func (g *generator) other(i int) string {
	switch n := g.IntN(10); {
	case n < 6:
		return ""
	case n < 8 && i > 0:
		return fmt.Sprintf("%s:%d", pick(g, "stage", "number"), g.IntN(i))
	}
	return fmt.Sprintf("base:%d", g.IntN(len(g.c.Bases)))
}

func (g *generator) copy(i int) Instr {
	in := Instr{Op: "COPY", From: g.other(i)}
	g.copyFlags(&in)
	for range 1 + g.IntN(2)*g.IntN(2) {
		in.Args = append(in.Args, g.source(in.From))
	}
	if in.From == "" && g.chance(15) {
		in.Args = nil
		if g.chance(50) {
			in.Args = []string{strings.TrimSuffix(g.contextPath(), "/")}
		}
		in.Inline = []Inline{{Name: "h.txt", Data: g.content()}}
	}
	in.Dest = g.dest()
	if strings.Contains(strings.Join(append(in.Args, in.Dest), ""), " ") && len(in.Inline) > 0 {
		in.Inline, in.Args = nil, append(in.Args, g.contextPath()) // no heredocs among quoted words
	}
	if len(in.Args)+len(in.Inline) > 1 {
		in.Dest = strings.TrimSuffix(in.Dest, "/") + "/"
	}
	// BuildKit does not find the context's root itself.
	in.Parents = in.Parents && !slices.ContainsFunc(in.Args, func(a string) bool { return path.Clean("/"+a) == "/" })
	if in.Parents { // the pivot
		for k, a := range in.Args {
			if j := strings.IndexByte(strings.TrimPrefix(a, "/"), '/'); j > 0 && g.chance(40) {
				j += len(a) - len(strings.TrimPrefix(a, "/"))
				in.Args[k] = a[:j] + "/." + a[j:]
			}
		}
	}
	return in
}

func (g *generator) copyFlags(in *Instr) {
	if g.chance(25) {
		in.Chown = pick(g, "bob", "bob:staff", "1000", "12:2000", "root:staff", "nobody", "0:70000")
	}
	if g.chance(25) {
		in.Chmod = pick(g, "755", "0600", "4755", "1777", "u=rwX,go=rX", "a+x", "go-rwx", "u+s,g+w", "+t")
	}
	in.Link = g.chance(15)
	in.Parents = g.chance(12)
	if g.chance(15) {
		in.Exclude = append(in.Exclude, pick(g, "*.go", g.name(), "sub/*", "**/a", "*/b", "!a", "**"))
		if strings.ContainsAny(in.Exclude[0], " é") { // BuildKit's reader of flags mangles it
			in.Exclude = nil
		}
	}
}

// source is a path to copy from.
func (g *generator) source(from string) string {
	p := g.contextPath()
	if from != "" {
		p = g.place()
		if p == "/" || strings.HasPrefix(p, "/bin") {
			p = "/etc"
		}
	}
	switch g.IntN(12) {
	case 0:
		return pick(g, "*", p+"*", path.Join(path.Dir(p), "*"), "*/*", path.Join(p, "*"), "?", "[ab]", "s*/a*")
	case 1:
		if from == "" {
			return pick(g, ".", "/", "..", "./"+p, "/"+p)
		}
	case 2:
		return path.Dir(p)
	}
	return p
}

func (g *generator) dest() string {
	p := g.place()
	switch g.IntN(8) {
	case 0:
		return "/"
	case 1, 2:
		return strings.TrimSuffix(p, "/") + "/"
	case 3:
		return pick(g, ".", "./", "x", "x/y/", "../z", "$V", "/${V:-unset}/w")
	}
	return p
}

func (g *generator) addArchive() Instr {
	in := Instr{Op: "ADD", Args: []string{g.contextPath()}, Dest: g.dest()}
	for _, e := range g.c.Context {
		if e.Kind == Archive && g.chance(70) {
			in.Args[0] = e.Path
		}
	}
	if g.chance(30) {
		g.copyFlags(&in)
		in.Parents = false
	}
	return in
}

// run makes a RUN. Its commands may fail: the next one goes on.
func (g *generator) run(i int) Instr {
	in := Instr{Op: "RUN", Form: pick(g, "shell", "shell", "exec", "heredoc")}
	for range 1 + g.IntN(4) {
		in.Args = append(in.Args, g.command())
	}
	if i >= 0 {
		if g.chance(20) {
			in.Mounts = append(in.Mounts, g.mount(i))
			t := in.Mounts[0].Target
			switch in.Mounts[0].Type {
			case "bind":
				in.Args = append(in.Args, fmt.Sprintf("cp -a %s %s", t, g.short()), fmt.Sprintf("p=%s; [ -p $p ] || { cd %s && find . ! -name proc ! -name sys ! -name dev | sort >$p; }", g.short(), t))
			default:
				in.Args = append(in.Args, fmt.Sprintf("p=%s; echo k >%s/k; [ -p $p ] || cp %s/k $p", g.short(), t, t))
			}
		}
	}
	for k, a := range in.Args {
		// The shell itself complains about redirections.
		in.Args[k] = "{ " + a + "; } 2>/dev/null"
	}
	in.Args = append(in.Args, "true")
	return in
}

func (g *generator) mount(i int) Mount {
	m := Mount{Type: pick(g, "bind", "bind", "tmpfs", "cache"), Target: pick(g, "/mnt/m", "/m", g.short())}
	if strings.Contains(m.Target, "é") {
		m.Target = "/m" // BuildKit's reader of flags mangles it
	}
	switch m.Type {
	case "bind":
		m.From = strings.Replace(g.other(i), "number", "stage", 1)
		if m.From != "" {
			m.Source = pick(g, "/etc", "", "/")
		}
		m.RW = g.chance(30)
	case "cache":
		m.ID = fmt.Sprintf("%x-%d", g.c.Seed, g.IntN(2))
	}
	return m
}

// remove deletes p. Where p leads through a link that goes as well, rm with the
// whole path would stop at a point that depends on the order in a directory.
func remove(p string) string { return "(cd " + path.Dir(p) + " && rm -rf ./" + path.Base(p) + ")" }

// command is one command of a script; it has no effects that depend on the
// time, the machine or the file system.
func (g *generator) command() string {
	p, q := g.short(), g.short()
	g.serial++
	word := fmt.Sprintf("%x-%d", g.c.Seed, g.serial)
	// Opening a named pipe waits for its other end.
	onto := func(p, command string) string { return "[ -p " + p + " ] || " + command + " >" + p }
	switch g.IntN(26) {
	case 0, 1, 2:
		return "mkdir -p " + path.Dir(p) + "; " + onto(p, "echo "+word)
	case 3:
		return "[ -p " + p + " ] || echo " + word + " >>" + p
	case 4, 5:
		return remove(p)
	case 6:
		return remove(p) + "; mkdir -p " + p + "; echo " + word + " >" + p + "/new"
	case 7:
		return "mv " + p + " " + q
	case 8:
		if !g.links {
			return "true"
		}
		return "ln " + p + " " + q
	case 9:
		return "ln -s '" + g.target() + "' " + p
	case 10:
		return "ln -sfn " + q + " " + p
	case 11:
		return "chmod " + pick(g, "4755", "700", "u-w", "1777", "a=r") + " " + p
	case 12:
		return "chown -h " + pick(g, "12:34", "bob", "0:0", "70000:70000") + " " + p
	case 13:
		return "chmod -R go-w,u+X " + p
	case 14:
		return "cp -a " + p + " " + q
	case 15:
		return "touch -h -d '2001-02-03 04:05:06' " + p
	case 16:
		return "mkfifo " + p + "; mknod " + q + " c 1 3"
	case 17:
		return "umask 077; mkdir -p " + p + "; umask 022"
	case 18:
		return onto(p, "{ id; pwd; }")
	case 19:
		return onto(p, "echo \"$V $A $FROMBASE $HOME $PATH\"")
	case 20:
		return "[ -p " + p + " ] || " + onto(q, "cat "+p)
	case 21:
		return "rmdir " + p + "; rm -f " + q
	case 22:
		return "(cd " + p + " && rm -rf ./* ./.hid)"
	case 23:
		return onto(q, "ls -a "+p)
	case 24:
		return "mkdir " + p + "; chmod 2775 " + p + "; mkdir " + p + "/sub"
	}
	if !g.links {
		return onto(p, "echo "+word)
	}
	return onto(p, "echo "+word) + "; ln " + p + " " + q + "; chmod 640 " + q
}
