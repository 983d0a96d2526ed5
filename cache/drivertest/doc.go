// Package drivertest holds the drivers of snapshots to one contract: its tests
// do the same to each of them, through real mounts and without, and compare.
//
// The tests mount nothing themselves: the test binary runs itself again in a
// mount namespace of its own.
package drivertest
