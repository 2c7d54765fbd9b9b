package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/inode"

	"golang.org/x/sys/unix"
)

// maxLinks is how many symbolic links a path may have, as in the kernel.
const maxLinks = 40

// resolve opens path with O_PATH, component by component, as the kernel would, but
// that it looks at every symbolic link before it follows it. In a folder that not only
// its owner can write to, a link that belongs neither to the folder's owner nor to root
// nor to the caller may have been put there by anybody, and is not followed. The kernel
// says so only of the last component, only in sticky folders that everybody can
// write to, and only where fs.protected_symlinks is set.
//
// Each step begins at an open folder and ends at an open file, so nothing that is
// renamed meanwhile comes between the look and the step.
func resolve(path string) (int, error) {
	r := resolver{path: path, dir: -1, rest: path}
	if len(path) >= unix.PathMax {
		return -1, r.fail(unix.ENAMETOOLONG)
	}
	if path == "" {
		return -1, r.fail(unix.ENOENT)
	}
	defer r.enter(-1)
	if err := r.begin(); err != nil {
		return -1, r.fail(err)
	}
	for {
		fd, err := r.step()
		var refused *extents.Refusal
		switch {
		case errors.As(err, &refused):
			return -1, err
		case err != nil:
			return -1, r.fail(err)
		case fd >= 0:
			return fd, nil
		}
	}
}

// resolver is a path that is being walked: dir is the folder reached so far, rest is
// what has to be looked up from there.
type resolver struct {
	path  string
	dir   int
	rest  string
	links int
}

func (r *resolver) fail(err error) error { return &fs.PathError{Op: "open", Path: r.path, Err: err} }

// enter makes dir the folder reached so far.
func (r *resolver) enter(dir int) {
	if r.dir >= 0 {
		unix.Close(r.dir)
	}
	r.dir = dir
}

// begin enters the folder that rest begins at.
func (r *resolver) begin() error {
	from := "."
	if strings.HasPrefix(r.rest, "/") {
		from = "/"
	} else if r.dir >= 0 {
		return nil // a link's text, which begins where the link is
	}
	dir, err := openPath(unix.AT_FDCWD, from, unix.O_DIRECTORY)
	if err == nil {
		r.enter(dir)
	}
	return err
}

// step looks up the next component. It returns the descriptor of the last one, or -1
// when there is more to do.
func (r *resolver) step() (int, error) {
	name, rest, more := strings.Cut(strings.TrimLeft(r.rest, "/"), "/")
	if name == "" {
		name = "." // slashes are all that is left
	}
	if more { // with O_DIRECTORY, which mounts what is mounted on demand
		dir, err := openPath(r.dir, name, unix.O_NOFOLLOW|unix.O_DIRECTORY)
		if err == nil {
			r.enter(dir)
			r.rest = rest
			if strings.Trim(rest, "/") == "" {
				r.rest = "."
			}
			return -1, nil
		}
		if !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP) {
			return -1, err
		}
	}
	fd, err := openPath(r.dir, name, unix.O_NOFOLLOW)
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		defer unix.Close(fd)
		return r.follow(fd, st, name, rest, more)
	}
	if more {
		unix.Close(fd)
		return -1, unix.ENOTDIR
	}
	return fd, nil
}

// follow goes on at what the link called name leads to.
func (r *resolver) follow(link int, st unix.Stat_t, name, rest string, more bool) (int, error) {
	if r.links++; r.links > maxLinks {
		return -1, unix.ELOOP
	}
	if err := r.trust(st, name); err != nil {
		return -1, err
	}
	var fsys unix.Statfs_t
	if _, err := retry(func() (struct{}, error) { return struct{}{}, unix.Fstatfs(link, &fsys) }); err != nil {
		return -1, err
	}
	if fsys.Flags&stNoSymFollow != 0 {
		return -1, unix.ELOOP
	}
	if fsys.Type == unix.PROC_SUPER_MAGIC { // the text of such a link need not be a path
		fd, err := openPath(r.dir, name, 0)
		if err != nil || !more {
			return fd, err
		}
		r.enter(fd)
		r.rest = rest
		if strings.Trim(rest, "/") == "" {
			r.rest = "."
		}
		return -1, nil
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(link, "", buf)
	if err != nil {
		return -1, err
	}
	if n == 0 {
		return -1, unix.ENOENT
	}
	r.rest = string(buf[:n])
	if more {
		r.rest += "/" + rest
	}
	return -1, r.begin()
}

// stNoSymFollow is ST_NOSYMFOLLOW of linux/statfs.h: nothing follows links on this mount.
const stNoSymFollow = 0x2000

// trust refuses a link that a stranger may have put into the folder.
func (r *resolver) trust(link unix.Stat_t, name string) error {
	var dir unix.Stat_t
	if err := unix.Fstat(r.dir, &dir); err != nil {
		return err
	}
	if trusted(dir, link, uint32(os.Geteuid())) {
		return nil
	}
	at, err := os.Readlink(inode.Link(r.dir))
	if err != nil {
		return err
	}
	return extents.Refuse(r.path, extents.Problem{
		Rule: extents.NotRegular,
		Message: fmt.Sprintf("the symbolic link %s is not followed: it belongs to user %d, and others besides its owner (user %d) can write to the directory that it is in",
			strings.TrimSuffix(at, "/")+"/"+name, link.Uid, dir.Uid),
		Remedy: advice.FollowedLink,
	})
}

// trusted reports whether only the folder's owner, root or the caller can have put the
// link into the folder.
func trusted(dir, link unix.Stat_t, caller uint32) bool {
	return dir.Mode&0o022 == 0 || link.Uid == dir.Uid || link.Uid == 0 || link.Uid == caller
}

func openPath(dir int, name string, flags int) (int, error) {
	return retry(func() (int, error) { return unix.Openat(dir, name, unix.O_PATH|unix.O_CLOEXEC|flags, 0) })
}
