// Package guard decides whether a mapping is still what was verified, and watches
// it: Check compares recorded values with values read again, Decide says what
// follows under the mapping's policy, and Watch does both at every hint and on a
// timer. It reads the world and acts on it only through the World and Actions that
// it is given, so every decision can be tested without a kernel.
//
// Hints are never trusted: each leads to the same reading, and without any the timer
// finds the same, later.
package guard
