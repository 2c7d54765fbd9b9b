// Package vmtest helps tests that run in a guest (see docs/testing.md). Only
// tests import it.
//
// Such tests stand in files with the build tag vmtest, in the package that
// they test, and the package's TestMain is
//
//	func TestMain(m *testing.M) { vmtest.Main(m) }
//
// Everything here works through the system's own tools and calls, never
// through the packages under test, so that it can serve as their oracle. Each
// helper ends the test on failure and undoes its work when the test is over.
//
// A test's name says where it runs: TestQemu… only in qemu guests, TestNew…
// only with the newest kernel, TestFull… only in the quickest guest (User Mode
// Linux), every other one in all of them. A skipped test counts as failed.
package vmtest
