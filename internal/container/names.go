package container

import (
	"fmt"
	"math/rand/v2"
)

var adjectives = [...]string{
	"agile", "amber", "brave", "bright", "brisk", "calm", "candid", "clever",
	"cosy", "crisp", "daring", "deft", "eager", "early", "fair", "fleet",
	"fond", "frank", "gentle", "glad", "golden", "hardy", "honest", "jolly",
	"keen", "kind", "lively", "lucid", "merry", "mild", "neat", "nimble",
	"noble", "patient", "plain", "polite", "prompt", "proud", "quick", "quiet",
	"rapid", "ready", "sage", "sharp", "sleek", "smart", "snug", "solid",
	"spry", "steady", "still", "sturdy", "sunny", "swift", "tidy", "trim",
	"trusty", "upbeat", "vivid", "warm", "wise", "witty", "young", "zesty",
}

var nouns = [...]string{
	"anvil", "apiary", "arch", "barn", "beacon", "bench", "boat", "bridge",
	"brook", "cabin", "canal", "castle", "cedar", "chapel", "chisel", "cliff",
	"crane", "dome", "ferry", "field", "forge", "garden", "gate", "girder",
	"harbour", "hinge", "island", "jetty", "keel", "kiln", "ladder", "lantern",
	"lathe", "lever", "lintel", "loom", "mason", "meadow", "mill", "mortar",
	"oak", "orchard", "pier", "pillar", "plough", "pulley", "quarry", "rafter",
	"ridge", "river", "sail", "spindle", "spire", "stone", "tower", "trowel",
	"tunnel", "valley", "vault", "viaduct", "wharf", "wheel", "willow", "yard",
}

// randomName makes a name up, "brisk_lantern", that is not taken.
func randomName(taken func(string) bool) string {
	name := ""
	for n := 0; name == "" || taken(name); n++ {
		name = adjectives[rand.IntN(len(adjectives))] + "_" + nouns[rand.IntN(len(nouns))]
		if n >= 5 {
			name += fmt.Sprint(rand.IntN(10 * n))
		}
	}
	return name
}
