package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/spf13/cobra"

	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/backing"
	"dmloop/internal/boot"
	"dmloop/internal/fault"
	"dmloop/internal/lifecycle"
	"dmloop/internal/size"
)

func newGrowCommand(env *cliEnv) *cobra.Command {
	o := &lifecycle.GrowOptions{}
	resize := false
	cmd := &cobra.Command{
		Use:   "grow IMAGE|NAME SIZE|+SIZE",
		Short: "Make an image longer, mapped or not",
		Long: `Make IMAGE, or the image of the mapping NAME, SIZE bytes long, or longer by +SIZE. What
is new is zeros, written to blocks of its own; what was there stays where it lies, and
that is proved. A mapping goes on meanwhile, and its device is longer afterwards. SIZE is
that of the content, as the device shows it, and is written as for create.

While the image of a mapping gets its new blocks its immutable flag is off. So the gate
in the kernel, or a guard that denies opens, has to keep others out; where neither does,
unmap it first. A sealed image grows while it is not mapped, and is sealed again.

When there is no room, or on any other failure, the image stays as long as it was. After
a kill the next command finishes the work or takes it back; an image that was not mapped
is as long as before or as asked for, and the same grow again completes it.

What is inside is left as it is. With --resizefs a file system on the device is grown by
its own tool: resize2fs, or xfs_growfs where it is mounted.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, more := strings.CutPrefix(args[1], "+")
			bytes, rounded, err := size.ParseDown(text, createBlock)
			if _, other := size.Parse(args[0]); err != nil && other == nil {
				return otherWayRound("grow", args)
			}
			if err != nil {
				return usageError("%v", err)
			}
			if rounded {
				env.logger().Log(cmd.Context(), fault.LevelNote, fmt.Sprintf("%s is no whole number of blocks: it is taken for %d bytes", text, int64(bytes)))
			}
			o.Size, o.More, o.Mapped = bytes, more, resize
			return runGrow(cmd.Context(), env, args[0], *o)
		},
		ValidArgsFunction: completeMappings(env),
	}
	f := cmd.Flags()
	f.BoolVar(&resize, "resizefs", false, "then grow the file system on the device with its own tool")
	f.BoolVar(&o.Unsafe, "unsafe", false, "accept that nothing may keep others out while the immutable flag is off")
	jsonFlag(env, cmd)
	return cmd
}

func runGrow(ctx context.Context, env *cliEnv, target string, o lifecycle.GrowOptions) error {
	sys := env.system()
	defer sys.Close()
	show, done := progress(env, "grow")
	o.Progress = show
	g, err := sys.Grow(ctx, target, o)
	done()
	if err != nil {
		return growError(target, err)
	}
	if env.json {
		err = printJSON(env, struct {
			Image   string        `json:"image"`
			Name    string        `json:"name"`
			Device  string        `json:"device"`
			OldSize extents.Bytes `json:"old_size"`
			Size    extents.Bytes `json:"size"`
			Extents int           `json:"extents"`
		}{g.Image, g.Name, g.Device, g.Old, g.Size, g.Extents})
	} else if g.Size == g.Old {
		_, err = fmt.Fprintf(env.stdout, "%s: nothing to do\n", printable(target))
	} else {
		_, err = fmt.Fprintf(env.stdout, "%s: %s, was %s\n", printable(target), humanSize(g.Size), humanSize(g.Old))
	}
	if g.Size > g.Old {
		growNotes(ctx, env, g)
	}
	if err != nil || !o.Mapped {
		return err
	}
	byHand, err := sys.ResizeInside(ctx, g.Device)
	if byHand != "" {
		env.logger().Log(ctx, fault.LevelNote, byHand, "device", g.Device)
	}
	return err
}

// growError gives the errors of package backing among those of grow their class. One that
// tells two things stays as it is.
func growError(target string, err error) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var all []error
		for _, one := range joined.Unwrap() {
			all = append(all, growError(target, one))
		}
		return errors.Join(all...)
	}
	switch {
	case errors.Is(err, backing.ErrNoSections):
		return &fault.Error{Class: fault.Failed, Subject: target, Message: backing.ErrNoSections.Error()}
	case errors.Is(err, backing.ErrNoAppend):
		return &fault.Error{Class: fault.KernelLacks, Subject: target, Message: backing.ErrNoAppend.Error(), Remedy: advice.CopyToGrow}
	}
	return backingError(target, err, fault.Usage)
}

// growNotes says what of the image does not become longer by itself.
func growNotes(ctx context.Context, env *cliEnv, g lifecycle.Grown) {
	note := func(message string) { env.logger().Log(ctx, fault.LevelNote, message, "image", g.Image) }
	if g.GPT {
		where := g.Device
		if where == "" {
			where = g.Image
		}
		note("the copy of its GPT is not at the end any more, and the partitions are as long as they were: sgdisk -e " + shellWord(where))
	}
	if g.Name == "" {
		return
	}
	switch _, err := (boot.Store{Dir: boot.Dir}).Load(g.Name); {
	case err == nil:
		note("the boot manifest of " + g.Name + " knows the image as it was, and would refuse it: dmloop boot save " + shellWord(g.Name) + ", and make the initramfs anew")
	case !errors.Is(err, fs.ErrNotExist):
		env.logger().Warn("the boot manifest cannot be read", "mapping", g.Name, "error", err)
	}
}
