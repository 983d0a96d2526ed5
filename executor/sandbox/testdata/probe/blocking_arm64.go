package main

// blocking are calls that wait for something, or fork.
var blocking []uintptr
