package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"dmloop/extents"
	"dmloop/guard"
	"dmloop/internal/fault"
	"dmloop/internal/lifecycle"
	"dmloop/internal/survey"
)

type checkJSON struct {
	Images []checkedJSON `json:"images"`
}

type checkedJSON struct {
	Image      string        `json:"image"`
	Size       extents.Bytes `json:"size"`
	Filesystem string        `json:"filesystem"`
	Mappable   bool          `json:"mappable"`
	Sealed     bool          `json:"sealed"`
	Extents    int           `json:"extents"`
	Problems   []problemJSON `json:"problems"`
	Directory  bool          `json:"directory,omitempty"` // it is one, and this is about images in it
	Grade      string        `json:"grade,omitempty"`     // of a directory: what an image there can have

	problems []extents.Problem // the same
}

func newCheckCommand(env *cliEnv) *cobra.Command {
	o := &survey.Options{}
	word := pinWord{words: []string{lifecycle.PinAuto, lifecycle.PinImmutable, lifecycle.PinSwap, lifecycle.PinNone}}
	cmd := &cobra.Command{
		Use:   "check IMAGE|DIRECTORY...",
		Short: "Say whether images can be mapped, and if not, why",
		Long: `Run all rules on images and print what stands in the way, where, and what to do. For a
directory, say whether images in it could be mapped. For each rule the first three
places are printed, ten with --verbose. Nothing is changed. Exits with 3 when an image
is not mappable.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.AsSealed = word.isSwap()
			return runCheck(cmd.Context(), env, *o, args)
		},
	}
	surveyFlags(cmd, o)
	cmd.Flags().Var(&word, "pin", "check for this --pin of map: auto, immutable, swap or none")
	jsonFlag(env, cmd)
	return cmd
}

// runCheck prints what it can of every image before it fails for any.
func runCheck(ctx context.Context, env *cliEnv, o survey.Options, images []string) error {
	sys := env.system()
	defer sys.Close()
	out := checkJSON{Images: []checkedJSON{}}
	var failed []error
	refused := false
	for _, path := range images {
		c, err := checkOne(ctx, sys, o, path)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		refused = refused || !c.Mappable
		out.Images = append(out.Images, c)
		if !env.json {
			printChecked(env, c)
		}
	}
	if env.json {
		if err := printJSON(env, out); err != nil {
			return err
		}
	}
	switch {
	case len(failed) > 0:
		return errors.Join(failed...)
	case refused: // in use at the moment only, too: that is not mappable now
		return reported{fault.NotMappable}
	}
	return nil
}

// checkOne turns a file that cannot even be judged, such as a FIFO, into an
// answer: that is what was asked.
func checkOne(ctx context.Context, sys *lifecycle.System, o survey.Options, path string) (checkedJSON, error) {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		r, err := sys.CheckFolder(path)
		return checkedJSON{Image: path, Filesystem: r.Filesystem, Mappable: len(r.Problems) == 0, Directory: true, Grade: string(r.Grade),
			Problems: problemsJSON(inFolder(path), r.Problems), problems: r.Problems}, err
	}
	v, err := sys.Check(ctx, path, o)
	var e *fault.Error
	if errors.As(err, &e) && len(e.Problems) > 0 {
		return checkedJSON{Image: path, Problems: problemsJSON(path, e.Problems), problems: e.Problems}, nil
	}
	if err != nil {
		return checkedJSON{}, err
	}
	return checkedJSON{
		Image: path, Size: v.Content, Filesystem: v.Facts.Filesystem, Mappable: len(v.Problems) == 0,
		Sealed: v.Sealed, Extents: len(v.Layout.Extents), Problems: problemsJSON(path, v.Problems), problems: v.Problems,
	}, nil
}

// inFolder stands for an image in a folder, in hints.
func inFolder(path string) string { return filepath.Join(path, "IMAGE") }

func printChecked(env *cliEnv, c checkedJSON) {
	switch {
	case c.Directory && c.Mappable && c.Grade == string(guard.GradeUnsafe):
		fmt.Fprintf(env.stdout, "%s: images here can be mapped once they are sealed (%s)\n", printable(c.Image), c.Filesystem)
		return
	case c.Directory && c.Mappable:
		fmt.Fprintf(env.stdout, "%s: images here can be mapped (%s, grade %s)\n", printable(c.Image), c.Filesystem, c.Grade)
		return
	case c.Mappable:
		sealed := ""
		if c.Sealed {
			sealed = ", sealed"
		}
		fmt.Fprintf(env.stdout, "%s: mappable (%s, %s, %s%s)\n", printable(c.Image), humanSize(c.Size), c.Filesystem, plural(c.Extents, "extent"), sealed)
		return
	}
	what := "not mappable"
	if c.Directory {
		what = "images here cannot be mapped"
	}
	fmt.Fprintf(env.stdout, "%s: %s, %s\n", printable(c.Image), what, countOf(c.problems))
	about := c.Image
	if c.Directory {
		about = inFolder(c.Image)
	}
	for _, l := range problemLines(about, c.problems, env.verbose) {
		fmt.Fprintf(env.stdout, "  %s\n", printable(l.text))
		if l.hint != "" {
			fmt.Fprintf(env.stdout, "    hint: %s\n", printable(l.hint))
		}
	}
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
