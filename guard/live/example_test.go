package live_test

import (
	"context"
	"fmt"
	"log/slog"

	"dmloop/dmtable"
	"dmloop/guard"
	"dmloop/guard/live"
)

// A program that made a device of a file has it watched, and decides itself what follows.
func ExampleNew() {
	table, err := dmtable.ParseText("0 8192 linear 8:1 2048\n")
	if err != nil {
		fmt.Println(err)
		return
	}
	w, err := live.New(context.Background(), live.Mapping{Image: "/srv/data.img", UUID: "MYPROGRAM-data", Table: table}, slog.Default())
	if err != nil {
		fmt.Println("not watched") // err says why: here is no such device
		return
	}
	defer w.Close()
	w.Watch(context.Background(), guard.DefaultPace, func(r guard.Report) {
		decision := guard.Decide(r.Findings, guard.OnChangeError)
		fmt.Println(decision.State, r.Findings)
	})
	// Output: not watched
}
