package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"dmloop/internal/lifecycle"
)

func newPinCommand(env *cliEnv) *cobra.Command {
	word := pinWord{words: []string{lifecycle.PinAuto, lifecycle.PinSwap}}
	cmd := &cobra.Command{
		Use:   "pin IMAGE...",
		Short: "Pin images by hand, as map does, and leave them pinned",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runPin(cmd.Context(), env, args, word.isSwap())
		},
	}
	cmd.Flags().Var(&word, "pin", "auto, or swap: the images are sealed, whatever their attributes say")
	jsonFlag(env, cmd)
	return cmd
}

// pinWord is a flag --pin of a command that takes some of map's words.
type pinWord struct {
	words []string // the first is the default
	word  string
}

func (p *pinWord) String() string {
	if p.word == "" && len(p.words) > 0 {
		return p.words[0]
	}
	return p.word
}

func (p *pinWord) Type() string { return "string" }

func (p *pinWord) Set(text string) error {
	if !slices.Contains(p.words, text) {
		return fmt.Errorf("it takes %s, not %q", strings.Join(p.words, ", "), text)
	}
	p.word = text
	return nil
}

func (p *pinWord) isSwap() bool { return p.word == lifecycle.PinSwap }

func runPin(ctx context.Context, env *cliEnv, images []string, asSealed bool) error {
	sys := env.system()
	defer sys.Close()
	type pinned struct {
		Image string   `json:"image"`
		Pin   []string `json:"pin"`
	}
	out := []pinned{}
	err := each(images, func(path string) error {
		kinds, err := sys.Pin(ctx, path, asSealed)
		if err != nil {
			return err
		}
		out = append(out, pinned{path, kinds})
		if !env.json {
			fmt.Fprintf(env.stdout, "%s: %s\n", printable(path), strings.Join(kinds, " "))
		}
		return nil
	})
	if !env.json {
		return err
	}
	return errors.Join(err, printJSON(env, struct {
		Images []pinned `json:"images"`
	}{out}))
}
