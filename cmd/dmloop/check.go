package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"dmloop/extents"
	"dmloop/internal/fault"
	"dmloop/internal/lifecycle"
	"dmloop/internal/survey"
)

type checkJSON struct {
	Images      []checkedJSON   `json:"images"`
	Directories []directoryJSON `json:"directories,omitempty"` // only where one was asked about: of images the answer is as it always was
}

type checkedJSON struct {
	Image      string        `json:"image"`
	Size       extents.Bytes `json:"size"`
	Filesystem string        `json:"filesystem"`
	Mappable   bool          `json:"mappable"`
	Sealed     bool          `json:"sealed"`
	Extents    int           `json:"extents"`
	Format     string        `json:"format"`
	Problems   []problemJSON `json:"problems"`
	Notes      []noteJSON    `json:"notes"`

	problems []extents.Problem // the same
}

// noteJSON is something worth knowing that refuses nothing.
type noteJSON struct {
	Message string `json:"message"`
	Hint    string `json:"hint"`
}

func newCheckCommand(env *cliEnv) *cobra.Command {
	o := &survey.Options{}
	word := pinWord{words: []string{lifecycle.PinAuto, lifecycle.PinImmutable, lifecycle.PinSwap, lifecycle.PinNone}}
	cmd := &cobra.Command{
		Use:   "check IMAGE|DIRECTORY...",
		Short: "Say whether images can be mapped, and if not, why",
		Long: `Run all rules on images and print what stands in the way, where, and what to do. For
each rule the first three places are printed, ten with --verbose. A file that is not a
plain disk image, such as a qcow2 or a compressed one, gets a note with the command
that converts it. Nothing is changed. Exits with 3 when an image is not mappable.

For a directory, such as a mount point, say whether images in it could be mapped, with
which pin, grade and gate, what stands in the way, and the ways out on this machine with
their commands. Nothing is written. Exits with 3 when no image there could be mapped.`,
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
		if isDirectory(path) {
			d, err := checkDirectory(sys, o, path)
			if err != nil {
				failed = append(failed, err)
				continue
			}
			refused = refused || !d.Mappable
			out.Directories = append(out.Directories, d)
			if !env.json {
				printDirectory(env, d)
			}
			continue
		}
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
	v, err := sys.Check(ctx, path, o)
	var e *fault.Error
	if errors.As(err, &e) && len(e.Problems) > 0 {
		return checkedJSON{Image: path, Format: rawFormat, Problems: problemsJSON(path, e.Problems), Notes: []noteJSON{}, problems: e.Problems}, nil
	}
	if err != nil {
		return checkedJSON{}, err
	}
	return checkedJSON{
		Image: path, Size: v.Content, Filesystem: v.Facts.Filesystem, Mappable: len(v.Problems) == 0,
		Sealed: v.Sealed, Extents: len(v.Layout.Extents), Format: cmp.Or(v.Format.Name, rawFormat),
		Problems: problemsJSON(path, v.Problems), Notes: formatNotes(path, v.Format), problems: v.Problems,
	}, nil
}

// rawFormat is the format of a file that is the plain content of a disk, as far as that shows.
const rawFormat = "raw"

// formatNotes says what an image is that is no plain one.
func formatNotes(path string, f survey.Format) []noteJSON {
	note := noteJSON{Hint: hint(path, f.Remedy)}
	switch f.Use {
	case survey.Packed:
		note.Message = "it is " + f.What + ", and its device shows it byte for byte, not the disk in it"
	case survey.ReadOnly:
		note.Message = "it is " + f.What + ", which is only ever read"
	case survey.Footer:
		note.Message = "it is " + f.What
	default:
		return []noteJSON{}
	}
	return []noteJSON{note}
}

func isDirectory(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

func printChecked(env *cliEnv, c checkedJSON) {
	if c.Mappable {
		sealed := ""
		if c.Sealed {
			sealed = ", sealed"
		}
		fmt.Fprintf(env.stdout, "%s: mappable (%s, %s, %s%s)\n", printable(c.Image), humanSize(c.Size), c.Filesystem, plural(c.Extents, "extent"), sealed)
	} else {
		fmt.Fprintf(env.stdout, "%s: not mappable, %s\n", printable(c.Image), countOf(c.problems))
	}
	printRules(env, c.Image, c.problems)
	for _, n := range c.Notes {
		if slices.ContainsFunc(c.Problems, func(p problemJSON) bool { return p.Hint == n.Hint }) {
			n.Hint = "" // it stands there
		}
		printNote(env, n)
	}
}

// printRules prints the broken rules of an image.
func printRules(env *cliEnv, about string, problems []extents.Problem) {
	for _, l := range problemLines(about, problems, env.verbose) {
		fmt.Fprintf(env.stdout, "  %s\n", printable(l.text))
		if l.hint != "" {
			fmt.Fprintf(env.stdout, "    hint: %s\n", printable(l.hint))
		}
	}
}

func printNote(env *cliEnv, n noteJSON) {
	fmt.Fprintf(env.stdout, "  note: %s\n", printable(n.Message))
	if n.Hint != "" {
		fmt.Fprintf(env.stdout, "    hint: %s\n", printable(n.Hint))
	}
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
