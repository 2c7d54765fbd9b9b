// Package lifecycle holds the use cases: check, map, unmap, list, verify, pin. It
// orders the steps that the other packages provide and owns the undo of each. It
// neither prints nor reads flags.
package lifecycle
