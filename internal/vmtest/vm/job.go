package vm

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// JobVariable names the environment variable, given to the guest's process 1
// on the kernel command line, that holds the path of the job file.
const JobVariable = "DMLOOP_JOB"

// Names of the channels between guest and host. They are the names of the
// virtio ports; in User Mode Linux each is the console in ConsoleOf.
const (
	ChannelStdout  = "dmloop.stdout"
	ChannelStderr  = "dmloop.stderr"
	ChannelControl = "dmloop.control"
)

// Channels lists the channels in the order of the descriptors that the guest's
// process inherits, from descriptor 3 up.
var Channels = []string{ChannelStdout, ChannelStderr, ChannelControl}

// A Command is one program to run in the guest.
type Command struct {
	Args []string `json:"args"` // Args[0] is an absolute path on the host
	Dir  string   `json:"dir"`  // working directory
}

// A Job is everything the guest has to know.
type Job struct {
	Kernel   string    `json:"kernel"`  // value of DMLOOP_GUEST
	Modules  string    `json:"modules"` // folder on the host that becomes /lib/modules/VERSION
	Tools    string    `json:"tools"`   // folder on the host whose programs hide the host's, or nothing
	Preload  []string  `json:"preload"` // modules to load before the first command
	Disks    []string  `json:"disks"`   // device paths in the guest
	Env      []string  `json:"env"`     // further environment of the commands
	Commands []Command `json:"commands"`

	// Transcript puts both outputs of all commands on standard output, in
	// order, with a CommandMark before each.
	Transcript bool `json:"transcript"`
}

// CommandMark is the line in a transcript that begins command number i. Its
// first character is the one that keeps test output and test events apart.
func CommandMark(i int) string { return fmt.Sprintf("\n\x16=== COMMAND %d\n", i) }

// A Report is one line on the control channel.
type Report struct {
	Kind    string `json:"kind"`    // "ready", "exit", "error" or "done"
	Command int    `json:"command"` // for "exit": index in Job.Commands
	Code    int    `json:"code"`    // for "exit": the exit code, 128+n for signal n
	Text    string `json:"text"`    // for "error": what went wrong; for "ready": the kernel's release
}

// writeJob stores the job in dir and returns the file's path.
func writeJob(dir string, job Job) (string, error) {
	data, err := json.MarshalIndent(job, "", " ")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "job.json")
	return path, os.WriteFile(path, data, 0o600)
}

// ReadJob reads the job file at path.
func ReadJob(path string) (Job, error) {
	var job Job
	data, err := os.ReadFile(path)
	if err != nil {
		return job, err
	}
	if err := json.Unmarshal(data, &job); err != nil {
		return job, fmt.Errorf("job file %s: %w", path, err)
	}
	return job, nil
}

// readReports calls handle for each report until r ends. A line that is no
// report is an error: nothing else may write to the control channel.
func readReports(r io.Reader, handle func(Report)) error {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		var rep Report
		if err := json.Unmarshal(lines.Bytes(), &rep); err != nil {
			return fmt.Errorf("control channel: %q: %w", lines.Text(), err)
		}
		handle(rep)
	}
	return lines.Err()
}
