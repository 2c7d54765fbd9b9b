package main

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"dmloop/internal/advice"
	"dmloop/internal/fault"
)

// explainArgs makes the commands below cmd say what is wrong with the number of their
// arguments, and how they are used. Cobra's own words are about ranges of numbers.
func explainArgs(cmd *cobra.Command) {
	for _, c := range cmd.Commands() {
		explainArgs(c)
		check := c.Args
		if check == nil {
			continue
		}
		c.Args = func(c *cobra.Command, args []string) error {
			err := check(c, args)
			if err == nil || c.HasSubCommands() || errors.As(err, new(*fault.Error)) || strings.HasPrefix(err.Error(), "invalid argument") { // which say more
				return err
			}
			message := "an argument is missing"
			if n := len(args); n > 0 && check(c, args[:n-1]) == nil {
				message = fmt.Sprintf("%q is one argument too many", args[n-1])
			}
			use := c.UseLine()
			if first, _, _ := strings.Cut(c.Example, "\n"); first != "" {
				use += ", for example: " + strings.TrimSpace(first)
			}
			return &fault.Error{Class: fault.Usage, Message: message, Remedy: advice.Usage.Of(use)}
		}
	}
}

// otherWayRound is what is said of two arguments that each look like the other.
func otherWayRound(command string, args []string) error {
	return &fault.Error{Class: fault.Usage, Message: "the arguments are the other way round",
		Remedy: advice.DidYouMean.Of(fmt.Sprintf("dmloop %s %s %s", command, shellWord(args[1]), shellWord(args[0])))}
}

const unknownCommand = `^unknown command "(.*)" for "(dmloop[^"]*)"`

// explainUnknown replaces cobra's complaint about a command that is not there, which has
// several lines. Any other error is returned as it is.
func explainUnknown(root *cobra.Command, err error) error {
	if err == nil {
		return nil
	}
	m := regexp.MustCompile(unknownCommand).FindStringSubmatch(err.Error())
	if m == nil {
		return err
	}
	e := &fault.Error{Class: fault.Usage, Message: fmt.Sprintf("unknown command %q", m[1]), Remedy: advice.SeeHelp}
	parent := root
	if m[2] != root.Name() {
		for _, c := range root.Commands() {
			if c.CommandPath() == m[2] {
				parent = c
			}
		}
	}
	parent.SuggestionsMinimumDistance = 2
	if near := parent.SuggestionsFor(m[1]); len(near) > 0 {
		e.Remedy = advice.DidYouMean.Of(parent.CommandPath() + " " + near[0])
	}
	return e
}
