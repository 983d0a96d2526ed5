package limits

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// files measures the file system under dir, its caches warm.
func files(ctx context.Context, dir string) ([]Limit, error) {
	var all []Limit
	for _, measure := range []func(context.Context, string) ([]Limit, error){copyLarge, copySmall, walk} {
		found, err := measure(ctx, dir)
		all = append(all, found...)
		if err := errors.Join(err, ctx.Err()); err != nil {
			return all, err
		}
	}
	return all, nil
}

// copyLarge copies half a gigabyte, as fast as the kernel does it.
func copyLarge(_ context.Context, dir string) ([]Limit, error) {
	const size = 512 << 20
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	defer os.Remove(from)
	defer os.Remove(to)
	block := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(block) // never fails
	f, err := os.Create(from)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for range size / len(block) {
		if _, err := f.Write(block); err != nil {
			return nil, err
		}
	}
	unix.Sync() // or the copy waits for the writing back of this
	took, err := best(3, func() error { return copyTo(f, to, size) }, func() error { return os.Remove(to) })
	if err != nil {
		return nil, err
	}
	// A virtual machine gets the memory for the page cache from its host only as it
	// is touched for the first time.
	const files = 4
	defer func() {
		for i := range files {
			os.Remove(to + fmt.Sprint(i))
		}
	}()
	kept, err := best(1, func() error {
		return inParallel(files, func(i int) error { return copyTo(f, to+fmt.Sprint(i), size) })
	}, nil)
	if err != nil {
		return nil, err
	}
	return []Limit{
		{"copy of a large file (copy_file_range), each time to the same place", rate(size, took), "MB/s"},
		{fmt.Sprintf("the same to %d files of 512 MiB that are kept, %d threads, once", files, runtime.NumCPU()), rate(files*size, kept), "MB/s"},
	}, nil
}

// copyTo copies the first size bytes of f to a new file.
func copyTo(f *os.File, to string, size int64) error {
	g, err := os.Create(to)
	if err != nil {
		return err
	}
	defer g.Close()
	var offset int64
	for offset < size {
		n, err := unix.CopyFileRange(int(f.Fd()), &offset, int(g.Fd()), nil, int(size-offset), 0)
		if err != nil {
			return fmt.Errorf("copy_file_range: %w", err)
		}
		if n == 0 {
			return errors.New("copy_file_range copies nothing")
		}
	}
	return g.Close()
}

// CopyTree copies the directories and regular files below from to the new
// directory to, files as inParallel has them: what a machine can do at best.
func CopyTree(from, to string) error {
	var files []string
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(from, path)
		switch {
		case err != nil:
			return err
		case d.IsDir():
			return os.MkdirAll(filepath.Join(to, name), 0o755)
		case d.Type().IsRegular():
			files = append(files, name)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return inParallel(len(files), func(i int) error { return copyWhole(filepath.Join(from, files[i]), filepath.Join(to, files[i])) })
}

func copyWhole(from, to string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	return copyTo(f, to, fi.Size())
}

// copySmall copies 50,000 files of 4 KiB, and makes hard links to them.
func copySmall(ctx context.Context, dir string) ([]Limit, error) {
	const dirs, per = 500, 100
	from := filepath.Join(dir, "small")
	defer os.RemoveAll(from)
	if err := fill(from, dirs, per, 4096); err != nil {
		return nil, err
	}
	unix.Sync()
	to := filepath.Join(dir, "copies")
	each := func(one func(from, to string) error) (time.Duration, error) {
		return best(2, func() error {
			return inParallel(dirs, func(d int) error {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				a, b := filepath.Join(from, fmt.Sprint(d)), filepath.Join(to, fmt.Sprint(d))
				if err := os.MkdirAll(b, 0o755); err != nil {
					return err
				}
				for i := range per {
					if err := one(filepath.Join(a, fmt.Sprint(i)), filepath.Join(b, fmt.Sprint(i))); err != nil {
						return err
					}
				}
				return nil
			})
		}, func() error { return os.RemoveAll(to) })
	}
	copied, err := each(copyFile)
	if err != nil {
		return nil, err
	}
	linked, err := each(os.Link)
	if err != nil {
		return nil, err
	}
	threads := fmt.Sprintf(", %d threads", runtime.NumCPU())
	return []Limit{
		{"copy of 50,000 files of 4 KiB" + threads, copied.Seconds(), "s"},
		{"hard links to 50,000 files" + threads, linked.Seconds(), "s"},
	}, nil
}

func copyFile(from, to string) error {
	in, err := unix.Open(from, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", from, err)
	}
	defer unix.Close(in)
	out, err := unix.Open(to, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return fmt.Errorf("create %s: %w", to, err)
	}
	defer unix.Close(out)
	if _, err := unix.CopyFileRange(in, nil, out, nil, 4096, 0); err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	return nil
}

// walk reads the directories of 10,000 files and stats each file.
func walk(_ context.Context, dir string) ([]Limit, error) {
	const dirs, per = 100, 100
	root := filepath.Join(dir, "walked")
	defer os.RemoveAll(root)
	if err := fill(root, dirs, per, 16); err != nil {
		return nil, err
	}
	raw, err := best(5, func() error {
		return inParallel(dirs, func(d int) error { return statAll(filepath.Join(root, fmt.Sprint(d))) })
	}, nil)
	if err != nil {
		return nil, err
	}
	plain, err := best(5, func() error {
		return filepath.WalkDir(root, func(_ string, d fs.DirEntry, err error) error {
			if err == nil {
				_, err = d.Info()
			}
			return err
		})
	}, nil)
	if err != nil {
		return nil, err
	}
	return []Limit{
		{fmt.Sprintf("walk and stat of 10,000 files, getdents and statx, %d threads", runtime.NumCPU()), ms(raw), "ms"},
		{"walk and stat of 10,000 files, WalkDir", ms(plain), "ms"},
	}, nil
}

// statAll stats what is in a directory.
func statAll(dir string) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	defer unix.Close(fd)
	buf := make([]byte, 32<<10)
	var names []string
	for {
		n, err := unix.Getdents(fd, buf)
		if err != nil {
			return fmt.Errorf("read %s: %w", dir, err)
		}
		if n == 0 {
			break
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
	var st unix.Statx_t
	for _, name := range names {
		if err := unix.Statx(fd, name, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS, &st); err != nil {
			return fmt.Errorf("stat %s: %w", name, err)
		}
	}
	return nil
}

// fill makes directories 0, 1, 2… below root, each with files 0, 1, 2….
func fill(root string, dirs, per, size int) error {
	source := rand.NewChaCha8([32]byte{1})
	data := make([]byte, size)
	for d := range dirs {
		dir := filepath.Join(root, fmt.Sprint(d))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		for i := range per {
			_, _ = source.Read(data) // never fails
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), data, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// inParallel calls f with 0 to n-1, on as many threads as there are processors.
func inParallel(n int, f func(i int) error) error {
	threads := runtime.NumCPU()
	errs := make([]error, threads)
	var wait sync.WaitGroup
	for t := range threads {
		wait.Go(func() {
			for i := t; i < n && errs[t] == nil; i += threads {
				errs[t] = f(i)
			}
		})
	}
	wait.Wait()
	return errors.Join(errs...)
}
