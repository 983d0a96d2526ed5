package llb

import (
	"encoding/binary"
	"fmt"
	"reflect"

	"github.com/zeebo/blake3"

	"github.com/861fb494/build/internal/blake"
	"github.com/861fb494/build/internal/oci"
)

// digestOf hashes an operation and its inputs' digests.
//
// Each field that is not its zero value goes in by name, so that a field added
// later changes no digest of a graph that does not use it. An empty list is no
// list, whichever way its maker had it. Strings go in as
// they are, with their length: names of files need not be UTF-8.
func digestOf(op Op, inputs []*Node) oci.Digest {
	e := encoder{h: blake.Get()}
	defer blake.Put(e.h)
	e.text("llb1")
	if s, ok := op.(Source); ok && s.Scheme == Local && s.Digest != "" {
		// A pinned context is what it holds; how it was selected says nothing more.
		s.Select = Select{Paths: s.Select.Paths, Wildcards: s.Select.Wildcards}
		op = s
	}
	e.value(reflect.ValueOf(&op).Elem())
	for _, in := range inputs {
		e.text(string(in.Digest))
	}
	return blake.Digest(e.h)
}

type encoder struct{ h *blake3.Hasher }

func (e encoder) number(n uint64) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], n)
	e.h.Write(b[:])
}

func (e encoder) text(s string) {
	e.number(uint64(len(s)))
	e.h.WriteString(s)
}

func (e encoder) value(v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		e.text(v.String())
	case reflect.Bool:
		if v.Bool() {
			e.number(1)
		} else {
			e.number(0)
		}
	case reflect.Int, reflect.Int32, reflect.Int64:
		e.number(uint64(v.Int()))
	case reflect.Uint8, reflect.Uint32, reflect.Uint64:
		e.number(v.Uint())
	case reflect.Slice:
		e.number(uint64(v.Len()))
		if v.Type().Elem().Kind() == reflect.Uint8 {
			e.h.Write(v.Bytes())
			return
		}
		for i := range v.Len() {
			e.value(v.Index(i))
		}
	case reflect.Interface:
		e.text(v.Elem().Type().Name())
		e.value(v.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Field(i); !isZero(f) {
				e.text(v.Type().Field(i).Name)
				e.value(f)
			}
		}
		e.text("") // no field has this name: the struct ends
	default:
		panic(fmt.Sprintf("llb: a field of kind %s cannot be hashed", v.Kind()))
	}
}

func isZero(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Slice:
		return v.Len() == 0
	case reflect.Struct:
		for i := range v.NumField() {
			if !isZero(v.Field(i)) {
				return false
			}
		}
		return true
	}
	return v.IsZero()
}
