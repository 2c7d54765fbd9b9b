//go:build vmtest

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"dmloop/guard"
	"dmloop/internal/gate"
	"dmloop/internal/guardrpc"
	"dmloop/internal/vmtest"
)

// roleVariable makes the test binary another program: the command under test, or
// somebody who attacks an image.
const roleVariable = "DMLOOP_TEST_ROLE"

// gateVariable says "bpf" where the gate in the kernel is to be used. Most tests do without: they
// attack what it would refuse, and see what the guard finds.
const gateVariable = "DMLOOP_TEST_GATE"

func gateOff() bool { return os.Getenv(gateVariable) != string(guard.GateBPF) }

func init() {
	gate.Off = gateOff()
	switch os.Getenv(roleVariable) {
	case "dmloop":
		leasePatience, _ = time.ParseDuration(os.Getenv("DMLOOP_LEASE_PATIENCE")) // none: as it is
		main()
	case "attack":
		attackMain(os.Args[1], os.Args[2])
	case "opens":
		openTimes(os.Args[1])
		os.Exit(0)
	case "storm":
		fmt.Print(short(stormOf(os.Args[1])))
		os.Exit(1)
	case "scanner":
		scannerMain(os.Args[1], os.Args[2])
	case "race":
		racerMain(os.Args[1], os.Args[2])
	case "clear":
		clearMain(os.Args[1])
	case "":
		if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-test.") {
			// A command that a test runs in its own process started a guard of this: it would
			// run all tests beside the one that waits for it.
			fmt.Fprintf(os.Stderr, "the tests were started as %q: say which program they are to be (%s)\n", os.Args[1:], roleVariable)
			os.Exit(96)
		}
	}
}

// withGate has the test, and the programs that it starts, use the gate in the kernel.
func withGate(t testing.TB) {
	t.Helper()
	vmtest.RequireGuest(t)
	endGuard(t, "TERM")
	before, set := os.LookupEnv(gateVariable)
	os.Setenv(gateVariable, string(guard.GateBPF))
	gate.Off = false
	t.Cleanup(func() {
		endGuard(t, "TERM")
		if os.Unsetenv(gateVariable); set {
			os.Setenv(gateVariable, before)
		}
		gate.Off = gateOff()
	})
}

func TestMain(m *testing.M) { vmtest.Main(m) }

// command returns the program under test, not started.
func command(t testing.TB, role string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	return cmd
}

// dmloop runs the program under test.
func dmloop(t testing.TB, args ...string) vmtest.Result {
	t.Helper()
	cmd := command(t, "dmloop", args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return vmtest.Result{Stdout: out.String(), Stderr: errOut.String(), Code: cmd.ProcessState.ExitCode()}
}

// mustDmloop runs a command that has to succeed.
func mustDmloop(t testing.TB, args ...string) string {
	t.Helper()
	r := dmloop(t, args...)
	if r.Code != 0 {
		t.Fatalf("dmloop %s: exit code %d\n%s%s\nguard: %s", strings.Join(args, " "), r.Code, r.Stdout, r.Stderr, guardLog())
	}
	return r.Stdout
}

// guardLog returns the end of what the detached guard wrote.
func guardLog() string {
	b, err := os.ReadFile("/run/dmloop/guard.log")
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-4000):])
}

// guardPID returns the process that holds the guard's lock, or 0. It finds it in
// /proc: the tests of the guard's own answers are elsewhere.
func guardPID() int {
	processes, _ := os.ReadDir("/proc")
	for _, p := range processes {
		pid, err := strconv.Atoi(p.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		line, err := os.ReadFile("/proc/" + p.Name() + "/cmdline")
		if args := strings.Split(string(line), "\x00"); err == nil && len(args) > 1 && args[1] == "guard" {
			return pid
		}
	}
	return 0
}

// endGuard ends a running guard with a signal and waits until it is gone.
func endGuard(t testing.TB, signal string) {
	t.Helper()
	pid := guardPID()
	if pid == 0 {
		return
	}
	vmtest.Must(t, "kill", "-"+signal, strconv.Itoa(pid))
	await(t, "the end of the guard", 10*time.Second, func() bool { return guardPID() != pid })
}

// startGuard starts a guard by itself and waits until it answers.
func startGuard(t testing.TB, args ...string) {
	t.Helper()
	cmd := command(t, "dmloop", append([]string{"guard"}, args...)...)
	log, err := os.OpenFile("/run/dmloop/guard.log", os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go cmd.Wait()
	await(t, "an answer of the guard", 10*time.Second, func() bool {
		_, err := os.Stat("/run/dmloop/guard.sock")
		return err == nil && guardAnswers(t)
	})
}

func guardAnswers(t testing.TB) bool {
	g := guardrpc.NewGuard("/run/dmloop")
	defer g.Close()
	names, err := g.Watched(t.Context())
	return err == nil && names != nil
}

func await(t testing.TB, what string, patience time.Duration, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("%s did not come within %s\nguard: %s", what, patience, guardLog())
}
