// Command hello prints one line: what any program in Go costs to start.
package main

import "fmt"

func main() { fmt.Println("hello") }
