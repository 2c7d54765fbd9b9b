// Package suite finds the guest tests of this module, runs them with real
// kernels, and counts what passed. It is strict: a test that was skipped, that
// vanished, or whose guest failed counts as failed.
package suite
