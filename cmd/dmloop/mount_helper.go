package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"dmloop/dmtable"
	"dmloop/guard"
	"dmloop/internal/fault"
	"dmloop/internal/helper"
	"dmloop/internal/image"
	"dmloop/internal/lifecycle"
	"dmloop/internal/record"
	"dmloop/internal/size"
)

// The names under which mount(8) and umount(8) call the program for the type dmloop.
const (
	mountName  = "mount.dmloop"
	umountName = "umount.dmloop"
)

// Exit codes of mount(8), which helpers return as well.
const (
	mountUsage  = 1
	mountFailed = 32
)

// mountCall is what mount(8) and umount(8) call their helpers with.
type mountCall struct {
	source, dir string   // no source for umount
	options     []string // of -o
	flags       []string // single letters, with their dash, to be passed on
	fake        bool
}

// parseMountCall reads a helper's arguments: SOURCE DIR [-sfnv] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]
// for mount, DIR [-flnrv] [-N NAMESPACE] [-t TYPE] for umount.
func parseMountCall(args []string, operands int) (mountCall, error) {
	var c mountCall
	var plain []string
	for i := 0; i < len(args); i++ {
		arg := args[i]
		switch {
		case arg == "-o" || arg == "-N" || arg == "-t":
			if i++; i == len(args) {
				return c, fmt.Errorf("%s takes a word", arg)
			}
			if arg == "-o" {
				c.options = append(c.options, splitOptions(args[i])...)
			} else if arg == "-N" {
				return c, errors.New("another mount namespace (-N) is not supported")
			}
		case strings.HasPrefix(arg, "-") && len(arg) > 1:
			for _, letter := range arg[1:] {
				if letter == 'f' && operands == 2 {
					c.fake = true
				}
				c.flags = append(c.flags, "-"+string(letter))
			}
		default:
			plain = append(plain, arg)
		}
	}
	if len(plain) != operands {
		return c, fmt.Errorf("%d operands instead of %d", len(plain), operands)
	}
	if operands == 2 {
		c.source = plain[0]
	}
	c.dir = plain[operands-1]
	return c, nil
}

// splitOptions splits mount options at commas, except within double quotes.
func splitOptions(text string) (options []string) {
	quoted, start := false, 0
	for i := range len(text) {
		switch text[i] {
		case '"':
			quoted = !quoted
		case ',':
			if !quoted {
				options, start = append(options, text[start:i]), i+1
			}
		}
	}
	return append(options, text[start:])
}

// innerMount turns a call into the options of map and those of the mount of the device.
func (c mountCall) innerMount() (o lifecycle.MapOptions, fstype string, rest []string, err error) {
	for _, option := range c.options {
		word, value, _ := strings.Cut(option, "=")
		value = strings.Trim(value, `"`)
		switch word {
		case "":
		case "name":
			o.Name = value
		case "offset":
			o.Window.Offset, err = size.Parse(value)
		case "sizelimit":
			o.Window.Limit, err = size.Parse(value)
		case "pin":
			o.Pin = value
		case "gate":
			o.Gate = guard.Gate(value)
		case "fstype":
			fstype = value
		case "ro":
			o.ReadOnly = true
			rest = append(rest, option)
		case "loop", "nofail", "noauto", "auto", "_netdev", "uhelper", "helper":
		default:
			if !strings.HasPrefix(word, "x-") && !strings.HasPrefix(word, "X-") {
				rest = append(rest, option)
			}
		}
		if err != nil {
			return o, "", nil, fmt.Errorf("%s: %w", word, err)
		}
	}
	return o, fstype, rest, nil
}

// runMountHelper is the program as mount.dmloop: it maps an image and mounts the device, which
// umount undoes. Nothing stays mapped when the mount fails.
func runMountHelper(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	env := &cliEnv{stdout: stdout, stderr: stderr, stateDir: record.DefaultDir}
	c, err := parseMountCall(args, 2)
	var inner []string
	var o lifecycle.MapOptions
	var fstype string
	if err == nil {
		o, fstype, inner, err = c.innerMount()
	}
	if err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", mountName, err)
		return mountUsage
	}
	if c.fake {
		return 0
	}
	sys := env.system().WithPatience(activatePatience) // at boot many images come up, one after the other
	defer sys.Close()
	if o.Name == "" {
		o.Name = lifecycle.DefaultName(c.source)
	}
	st, there, err := sys.EnsureMapped(ctx, c.source, o)
	if err != nil {
		report(env, err)
		return mountFailed
	}
	if !there { // else whoever mapped it unmaps it
		inner = append(inner, "helper=dmloop") // umount(8) calls it for root; uhelper= is for other users only
	}
	command := []string{"-i"}
	if fstype != "" {
		command = append(command, "-t", fstype)
	}
	if len(inner) > 0 {
		command = append(command, "-o", strings.Join(inner, ","))
	}
	code := runProgram(ctx, env, "mount", append(command, "--", st.Device, c.dir))
	if code != 0 && !there {
		if err := sys.Unmap(context.WithoutCancel(ctx), st.Name, lifecycle.UnmapOptions{NameOnly: true}); err != nil {
			report(env, err)
		}
	}
	return code
}

// runUmountHelper is the program as umount.dmloop: it unmounts, and unmaps the image unless
// it is mounted elsewhere, too.
func runUmountHelper(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	env := &cliEnv{stdout: stdout, stderr: stderr, stateDir: record.DefaultDir}
	c, err := parseMountCall(args, 1)
	if err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", umountName, err)
		return mountUsage
	}
	name, err := mappedAt(c.dir)
	if err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", umountName, err)
		return mountFailed
	}
	lazy := false
	for _, flag := range c.flags {
		lazy = lazy || flag == "-l"
	}
	if code := runProgram(ctx, env, "umount", append(append([]string{"-i"}, c.flags...), "--", c.dir)); code != 0 {
		return code
	}
	sys := env.system().WithPatience(activatePatience) // at boot many images come up, one after the other
	defer sys.Close()
	err = sys.Unmap(ctx, name, lifecycle.UnmapOptions{NameOnly: true, Deferred: lazy})
	switch {
	case fault.ClassOf(err) == fault.Busy:
		env.logger().Warn("unmounted here; the device is in use, and the image stays mapped", "mapping", name, "error", err)
	case err != nil && fault.ClassOf(err) != fault.NotFound:
		report(env, err)
		return mountFailed
	}
	return 0
}

// mappedAt returns the name of the device that is mounted at a directory.
func mappedAt(dir string) (string, error) {
	path, err := filepath.EvalSymlinks(dir)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return "", err
	}
	mounts, err := image.Mounts()
	if err != nil {
		return "", err
	}
	for i := len(mounts) - 1; i >= 0; i-- {
		if mounts[i].Point == path {
			return deviceName(mounts[i].Device)
		}
	}
	return "", fmt.Errorf("%s: not mounted", dir)
}

func deviceName(number dmtable.Device) (string, error) {
	text, err := os.ReadFile(filepath.Join("/sys/dev/block", number.String(), "dm/name"))
	return strings.TrimSpace(string(text)), err
}

// runProgram runs a program of the system with its output where ours goes, and returns its
// exit code.
func runProgram(ctx context.Context, env *cliEnv, name string, args []string) int {
	cmd, err := helper.Command(ctx, name, args...)
	if err == nil {
		cmd.Stdout, cmd.Stderr = env.stdout, env.stderr
		err = cmd.Run()
	}
	if code, ended := helper.ExitCode(err); ended {
		return code
	}
	fmt.Fprintf(env.stderr, "dmloop: %s: %v\n", name, err)
	return mountFailed
}
