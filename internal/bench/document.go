package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// document writes the report into the Markdown file at path, between the marks
// of its kind, and its data and picture into a directory of the same name.
func (r Report) document(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	dir := strings.TrimSuffix(path, filepath.Ext(path))
	content := r.tables() + fmt.Sprintf("\n![%s](%s/%s.svg)\n\nAll samples: [%[3]s.json](%[2]s/%[3]s.json)\n", r.kind(), filepath.Base(dir), r.kind())
	if r.kind() == "scale" {
		content = r.slopes() + fmt.Sprintf("\n![curves](%s/scale.svg)\n\nAll samples: [scale.json](%[1]s/scale.json)\n", filepath.Base(dir))
	}
	filled, err := replaceBetween(string(text), r.kind(), content)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := r.write(dir); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(filled), 0o644)
}

// replaceBetween puts content between the lines <!-- begin NAME … --> and
// <!-- end NAME -->.
func replaceBetween(text, name, content string) (string, error) {
	head, rest, ok := strings.Cut(text, "<!-- begin "+name+":")
	mark, rest, ok2 := strings.Cut(rest, "-->\n")
	_, tail, ok3 := strings.Cut(rest, "<!-- end "+name+" -->")
	if !ok || !ok2 || !ok3 {
		return "", fmt.Errorf("it has no place for this: lines <!-- begin %s: … --> and <!-- end %[1]s -->", name)
	}
	return head + "<!-- begin " + name + ":" + mark + "-->\n\n" + content + "\n<!-- end " + name + " -->" + tail, nil
}

// tables is the Markdown of everything but the curves.
func (r Report) tables() string {
	var t strings.Builder
	t.WriteString(r.origin())
	rounds := plural(r.Rounds, "round")
	if len(r.earlier()) > 0 {
		rounds += ", or as many as the earlier run had"
	}
	t.WriteString("\nTimes are medians, with the least and the greatest, of " + rounds + ". A ratio is the median of build's time over the other's in the same round.\n\n")
	head := []string{"workload", ""}
	for _, b := range r.Builders {
		head = append(head, b.Title)
		if !b.ours() {
			head = append(head, "ratio")
		}
	}
	row(&t, head...)
	row(&t, rule(len(head))...)
	for _, result := range r.Results {
		if result.Layers == 0 {
			row(&t, r.times(result)...)
		}
	}
	if failures := r.failures(); len(failures) > 0 {
		t.WriteString("\n" + strings.Join(failures, ""))
	}
	t.WriteString("\nWhat it cost: seconds of all processors, with the steps and the daemon; peak memory in MB of the client's largest process (steps count as its; of builds at once the sum) and of the daemon.\n\n")
	head = []string{"workload"}
	for _, b := range r.Builders {
		head = append(head, b.Title+": CPU", "memory")
	}
	row(&t, append(head, "others' CPUs")...)
	row(&t, rule(len(head)+1)...)
	for _, result := range r.Results {
		if result.Layers == 0 && result.Failure == "" {
			row(&t, r.costs(result)...)
		}
	}
	for _, result := range r.Results {
		if result.Layers > 0 {
			r.disk(&t, result)
		}
	}
	if len(r.Limits) > 0 {
		of := "the same run"
		if r.LimitsOf != nil {
			of = "the run of " + r.LimitsOf.Date.Format(time.DateTime)
		}
		t.WriteString("\nWhat this machine could do, measured in " + of + ":\n\n| limit | |\n|---|--:|\n")
		for _, l := range r.Limits {
			row(&t, l.Name, digits(l.Value)+" "+l.Unit)
		}
	}
	return t.String()
}

// origin says where the figures come from.
func (r Report) origin() string {
	var t strings.Builder
	fmt.Fprintf(&t, "%s, on %s.\n\n", r.Date.Format(time.DateOnly), r.Machine)
	for _, b := range r.Builders {
		fmt.Fprintf(&t, "- %s: %s\n", b.Title, b.Version)
	}
	for _, m := range r.Missing {
		fmt.Fprintf(&t, "- not compared: %s\n", m)
	}
	for _, x := range r.earlier() {
		fmt.Fprintf(&t, "- of an earlier run, %s, of %s, with %s: %s\n", x.run.Date.Format(time.DateTime), plural(x.run.Rounds, "round"), x.run.Builders[0].Version, strings.Join(x.names, ", "))
	}
	if !r.compares() && len(r.Curves) == 0 {
		t.WriteString("- there was no peer: these figures compare nothing\n")
	}
	return t.String()
}

// ofRun is the names of the results of one run.
type ofRun struct {
	run   Run
	names []string
}

// earlier is the results that are not of the report's own run.
func (r Report) earlier() []ofRun {
	var runs []ofRun
	for _, x := range r.Results {
		if x.Earlier == nil {
			continue
		}
		i := slices.IndexFunc(runs, func(o ofRun) bool { return o.run.Date.Equal(x.Earlier.Date) })
		if i < 0 {
			i = len(runs)
			runs = append(runs, ofRun{run: *x.Earlier})
		}
		runs[i].names = append(runs[i].names, x.Name)
	}
	return runs
}

func (r Report) times(result Result) []string {
	cells := []string{result.Name, result.Title}
	for _, b := range r.Builders {
		cell, ratio := "–", "–"
		if e, ok := result.entry(b.Name); ok {
			low, high := bounds(e.values(wall))
			cell = seconds(median(e.values(wall))) + " (" + seconds(low) + " – " + seconds(high) + ")"
			if put := median(e.values(size)); put > 0 {
				cell += fmt.Sprintf(", %.0f MB put out", put/1e6)
			}
			if v := result.ratio(b.Name); v > 0 {
				ratio = fraction(v)
			}
		} else if result.failed(b.Name) {
			cell = "failed"
		}
		cells = append(cells, cell)
		if !b.ours() {
			cells = append(cells, ratio)
		}
	}
	return cells
}

// failures is a list of what could not be measured.
func (r Report) failures() []string {
	var lines []string
	add := func(what, why string) {
		if len(why) > 200 {
			why = why[:200] + "…"
		}
		lines = append(lines, fmt.Sprintf("- %s failed: `%s`\n", what, strings.ReplaceAll(firstLine(why), "`", "'")))
	}
	for _, result := range r.Results {
		if result.Failure != "" {
			add(result.Name, result.Failure)
		}
		for _, e := range result.Entries {
			if e.Failure != "" {
				add(result.Name+" of "+e.Builder, e.Failure)
			}
		}
	}
	return lines
}

// failed says whether that builder tried and could not.
func (r Result) failed(builder string) bool {
	if r.Failure != "" {
		return true
	}
	for _, e := range r.Entries {
		if e.Builder == builder && e.Failure != "" {
			return true
		}
	}
	return false
}

func (r Report) costs(result Result) []string {
	cells := []string{result.Name}
	var others float64
	for _, b := range r.Builders {
		e, ok := result.entry(b.Name)
		if !ok {
			cells = append(cells, "–", "–")
			continue
		}
		memory := fmt.Sprintf("%.0f", median(e.values(client))/1e6)
		if d := median(e.values(daemon)); d > 0 {
			memory += fmt.Sprintf(" + %.0f", d/1e6)
		}
		cells = append(cells, digits(median(e.values(cpu))), memory)
		others = max(others, median(e.values(foreign)))
	}
	return append(cells, fmt.Sprintf("%.2f", others))
}

func (r Report) disk(t *strings.Builder, result Result) {
	fmt.Fprintf(t, "\nThe %s, for %.0f MB of layers as tars:\n\n", result.Title, float64(result.Layers)/1e6)
	row(t, "builder", "MB", "of the layers")
	row(t, rule(3)...)
	for _, b := range r.Builders {
		if e, ok := result.entry(b.Name); ok && e.State > 0 {
			row(t, b.Title, fmt.Sprintf("%.0f", float64(e.State)/1e6), fmt.Sprintf("%.2f", float64(e.State)/float64(result.Layers)))
		} else if result.failed(b.Name) {
			row(t, b.Title, "failed", "")
		}
	}
}

func row(t *strings.Builder, cells ...string) {
	t.WriteString("| " + strings.Join(cells, " | ") + " |\n")
}

// rule is the line below a table's head.
func rule(columns int) []string {
	cells := make([]string, columns)
	for i := range cells {
		cells[i] = "---"
	}
	return cells
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
