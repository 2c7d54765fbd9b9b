package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/dm"
	"dmloop/internal/fault"
	"dmloop/internal/record"
)

// The contract's numbers, written out: renumbering the classes must not change them.
func TestExitCodesAreTheContracts(t *testing.T) {
	want := map[fault.Class]int{
		fault.Failed: 1, fault.Usage: 2, fault.NotMappable: 3, fault.StaleMapping: 4,
		fault.Busy: 5, fault.NotFound: 6, fault.NotPermitted: 7, fault.KernelLacks: 8,
	}
	if len(exitCodes) != len(want) {
		t.Errorf("%d classes have a code, want %d", len(exitCodes), len(want))
	}
	for class, code := range want {
		if exitCodes[class] != code {
			t.Errorf("class %d exits with %d, want %d", class, exitCodes[class], code)
		}
	}
}

// What the help and the manual say is what the program does.
func TestExitCodesAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/exit-codes.md")
	if err != nil {
		t.Fatal(err)
	}
	listed := map[int]string{}
	for _, m := range regexp.MustCompile(`(?m)^\| ([0-9]+) \| ([^|]+) \|`).FindAllStringSubmatch(string(text), -1) {
		code, _ := strconv.Atoi(m[1])
		listed[code] = m[2]
	}
	help := strings.Join(strings.Fields(exitStatusHelp), " ")
	for code := range 9 {
		words, ok := listed[code]
		if !ok {
			t.Errorf("the manual does not list %d", code)
		}
		if !strings.Contains(help, fmt.Sprintf("%d %s", code, words)) {
			t.Errorf("the help does not say %q: %s", fmt.Sprintf("%d %s", code, words), help)
		}
	}
	if len(listed) != len(exitCodes)+1 {
		t.Errorf("the manual lists %d codes, the program has %d and 0", len(listed), len(exitCodes))
	}
}

func TestErrorsGetTheirCode(t *testing.T) {
	path := func(errno unix.Errno) error { return &fs.PathError{Op: "open", Path: "x", Err: errno} }
	problem := func(rules ...extents.Rule) error {
		var all []extents.Problem
		for _, r := range rules {
			all = append(all, extents.Problem{Rule: r})
		}
		return fault.Refuse("x", all)
	}
	for name, c := range map[string]struct {
		err  error
		want int
	}{
		"anything":                       {errors.New("x"), 1},
		"the parser's":                   {errors.New(`unknown command "x" for "dmloop"`), 2},
		"a word like the parser's":       {&fault.Error{Class: fault.Failed, Message: "unknown flag"}, 1},
		"no such file":                   {path(unix.ENOENT), 6},
		"not permitted":                  {path(unix.EACCES), 7},
		"operation not permitted":        {path(unix.EPERM), 7},
		"exists":                         {path(unix.EEXIST), 5},
		"busy":                           {path(unix.EBUSY), 5},
		"text file busy":                 {path(unix.ETXTBSY), 5},
		"no space":                       {path(unix.ENOSPC), 1},
		"wrapped twice":                  {fmt.Errorf("a: %w", fmt.Errorf("b: %w", path(unix.ENOENT))), 6},
		"no device-mapper":               {fmt.Errorf("x: %w", dm.ErrNoDeviceMapper), 8},
		"no such mapping":                {fmt.Errorf("x: %w", record.ErrNotFound), 6},
		"a rule":                         {problem(extents.Hole), 3},
		"in use":                         {problem(extents.OpenElsewhere), 5},
		"swap in use":                    {problem(extents.ActiveSwap, extents.OpenElsewhere), 5},
		"overlap":                        {problem(extents.Overlap), 5},
		"in use and a rule":              {problem(extents.OpenElsewhere, extents.Hole, extents.Overlap), 3},
		"two failures: the first counts": {errors.Join(path(unix.ENOENT), path(unix.EACCES)), 6},
		"seen already":                   {reported{fault.StaleMapping}, 4},
		"seen already, wrapped":          {fmt.Errorf("x: %w", reported{fault.StaleMapping}), 4},
	} {
		var out, errOut strings.Builder
		for _, asJSON := range []bool{false, true} {
			env := &cliEnv{stdout: &out, stderr: &errOut, json: asJSON}
			if got := report(env, c.err); got != c.want {
				t.Errorf("%s: exit code %d, want %d", name, got, c.want)
			}
		}
		if out.Len() > 0 {
			t.Errorf("%s: on standard output: %s", name, out.String())
		}
	}
}

func TestJoinedErrorsAreALineEach(t *testing.T) {
	var errOut strings.Builder
	env := &cliEnv{stderr: &errOut}
	inner := &fault.Error{Class: fault.Busy, Subject: "b", Message: "in use", Remedy: advice.SeeStatus.Of("b c"), Err: errors.Join(errors.New("one"), errors.New("two"))}
	report(env, errors.Join(errors.New("a"), errors.Join(inner, errors.New("c"))))
	want := "dmloop: a\ndmloop: b: in use: one; two\nhint: see: dmloop status 'b c'\ndmloop: c\n"
	if got := errOut.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// A command that was told to end says so in one word, whatever it was doing, except for
// what it could not undo.
func TestInterrupted(t *testing.T) {
	dial := &net.OpError{Op: "dial", Err: context.Canceled}
	for _, c := range []struct {
		err  error
		want string
	}{
		{&fault.Error{Class: fault.Failed, Subject: "a.img", Err: context.Canceled}, "dmloop: a.img: interrupted\n"},
		{&fault.Error{Class: fault.Busy, Subject: "a.img", Message: "the guard does not hand out the image", Err: dial, Remedy: advice.KillGuard}, "dmloop: a.img: interrupted\n"},
		{fmt.Errorf("reading: %w", context.Canceled), "dmloop: interrupted\n"},
		{&fault.Error{Class: fault.Failed, Subject: "a.img", Err: errors.Join(context.Canceled, unix.EROFS)}, "dmloop: a.img: context canceled; read-only file system\n"},
	} {
		var out strings.Builder
		if code := report(&cliEnv{stderr: &out}, c.err); code != 1 {
			t.Errorf("%v: exit code %d", c.err, code)
		}
		if out.String() != c.want {
			t.Errorf("%v: said is %q, want %q", c.err, out.String(), c.want)
		}
	}
}
