package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/exitcodes"
	"dmloop/internal/fault"
)

// exitCodes is the one place where a class of error gets its exit code.
var exitCodes = map[fault.Class]int{
	fault.Failed:       exitcodes.Failure,
	fault.Usage:        exitcodes.Usage,
	fault.NotMappable:  exitcodes.NotMappable,
	fault.StaleMapping: exitcodes.StaleMapping,
	fault.Busy:         exitcodes.Busy,
	fault.NotFound:     exitcodes.NotFound,
	fault.NotPermitted: exitcodes.NotPermitted,
	fault.KernelLacks:  exitcodes.KernelLacks,
}

const exitStatusHelp = `Exit status: 0 done, 1 failed, 2 usage, 3 image not mappable, 4 mapping stale or
torn down, 5 busy or in use, 6 no such image or mapping, 7 not permitted, 8 the
kernel lacks something.`

func usageError(format string, args ...any) error {
	return &fault.Error{Class: fault.Usage, Message: fmt.Sprintf(format, args...), Remedy: advice.SeeHelp}
}

// reported is an error whose text the user has seen already; only its class counts.
type reported struct{ class fault.Class }

func (r reported) Error() string { return fmt.Sprintf("exit %d", exitCodes[r.class]) }

// report prints err as users and scripts expect it and returns the exit code.
func report(env *cliEnv, err error) int {
	code := exitCodes[classOf(err)]
	for _, one := range flatten(err) {
		if errors.As(one, new(reported)) {
			continue
		}
		one = interrupted(one)
		if env.json {
			printJSONError(env, one, exitCodes[classOf(one)])
		} else {
			printError(env, one)
		}
	}
	return code
}

// interrupted says in one word what a command failed with that was told to end: which
// step it was says nothing. Any other error is returned as it is.
func interrupted(err error) error {
	if !onlyCanceled(err) {
		return err
	}
	said := &fault.Error{Class: fault.Failed, Message: "interrupted"}
	var e *fault.Error
	if errors.As(err, &e) {
		said.Subject = e.Subject
	}
	return said
}

// onlyCanceled reports whether an end that was asked for is all that err tells: what
// could not be undone then is to be read.
func onlyCanceled(err error) bool {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return !slices.ContainsFunc(joined.Unwrap(), func(one error) bool { return !onlyCanceled(one) })
	}
	if cause := errors.Unwrap(err); cause != nil {
		return onlyCanceled(cause)
	}
	return errors.Is(err, context.Canceled)
}

// classOf gives errors of the command line parser, which have no class, their own.
func classOf(err error) fault.Class {
	var done reported
	if errors.As(err, &done) {
		return done.class
	}
	if errors.Is(err, context.Canceled) {
		return fault.Failed
	}
	var e *fault.Error
	if !errors.As(err, &e) && isParserError(err) {
		return fault.Usage
	}
	return fault.ClassOf(err)
}

// isParserError recognises cobra's errors, which have no type.
func isParserError(err error) bool {
	text := err.Error()
	for _, begin := range []string{"unknown command", "unknown flag", "unknown shorthand", "accepts ", "requires at least", "requires at most", "if any flags in the group", `invalid argument "`} {
		if strings.HasPrefix(text, begin) {
			return true
		}
	}
	return false
}

// flatten splits joined errors, so that each is printed on its own.
func flatten(err error) []error {
	if err == nil {
		return nil
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var all []error
		for _, e := range joined.Unwrap() {
			all = append(all, flatten(e)...)
		}
		return all
	}
	return []error{err}
}

func printError(env *cliEnv, err error) {
	var e *fault.Error
	if !errors.As(err, &e) {
		fmt.Fprintf(env.stderr, "dmloop: %s\n", oneLine(err))
		if isParserError(err) {
			printHint(env, hint("", advice.SeeHelp))
		}
		return
	}
	if len(e.Problems) == 0 {
		fmt.Fprintf(env.stderr, "dmloop: %s\n", oneLine(err))
		printHint(env, hint(e.Subject, e.Remedy))
		return
	}
	env.printProblems(e.Subject, e.Problems)
	printHint(env, hint(e.Subject, e.Remedy))
}

// oneLine is the text of an error; joined ones have line breaks.
func oneLine(err error) string { return printable(strings.ReplaceAll(err.Error(), "\n", "; ")) }

func printHint(env *cliEnv, hint string) {
	if hint != "" {
		fmt.Fprintf(env.stderr, "hint: %s\n", printable(hint))
	}
}

// jsonError is the form of an error on standard error with --json.
type jsonError struct {
	Subject  string        `json:"subject"`
	Message  string        `json:"message"`
	Hint     string        `json:"hint"`
	Code     int           `json:"code"`
	Problems []problemJSON `json:"problems"`
}

// problemJSON is the form of a broken rule.
type problemJSON struct {
	Rule    extents.Rule  `json:"rule"`
	Offset  extents.Bytes `json:"offset"`
	Length  extents.Bytes `json:"length"`
	Message string        `json:"message"`
	Hint    string        `json:"hint"`
}

// problemsJSON returns the problems of an image, an empty list when there are none.
func problemsJSON(image string, problems []extents.Problem) []problemJSON {
	list := make([]problemJSON, 0, len(problems))
	for _, p := range problems {
		list = append(list, problemJSON{p.Rule, p.Offset, p.Length, p.Message, problemHint(image, p)})
	}
	return list
}

func printJSONError(env *cliEnv, err error, code int) {
	out := jsonError{Message: err.Error(), Code: code, Problems: []problemJSON{}}
	if isParserError(err) {
		out.Hint = hint("", advice.SeeHelp)
	}
	var e *fault.Error
	if errors.As(err, &e) {
		out.Subject, out.Hint, out.Problems = e.Subject, hint(e.Subject, e.Remedy), problemsJSON(e.Subject, e.Problems)
		if out.Hint == "" && len(out.Problems) > 0 {
			out.Hint = out.Problems[0].Hint
		}
	}
	b, _ := json.Marshal(map[string]jsonError{"error": out})
	fmt.Fprintf(env.stderr, "%s\n", b)
}
