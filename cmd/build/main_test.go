package main

import (
	"os"
	"testing"

	"github.com/861fb494/build/internal/testbase/house"
)

func TestMain(m *testing.M) { os.Exit(house.Run(m)) }
