// A fast stand-in for ClaimX and iTel, so that a job is measured and not what answers it (one in Python is slower than
// the job). usage: faststub PORT LATENCY_MS FORM.json
//
// FORM.json is an answer of ClaimX whose assignmentId is written as 0000000. GET /count tells how many calls there were,
// and when the first one came, in seconds since 1970.
package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

func main() {
	milliseconds, _ := strconv.Atoi(os.Args[2])
	form, err := os.ReadFile(os.Args[3])
	if err != nil {
		panic(err)
	}
	var lookups, submissions int64
	var once sync.Once
	var first float64
	pause := func() { time.Sleep(time.Duration(milliseconds) * time.Millisecond) }
	answer := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
		switch {
		case parts[0] == "customTasks":
			once.Do(func() { first = float64(time.Now().UnixNano()) / 1e9 })
			pause()
			atomic.AddInt64(&lookups, 1)
			w.Write(bytes.Replace(form, []byte("0000000"), []byte(parts[2]), 1))
		case parts[0] == "count":
			fmt.Fprintf(w, `{"lookups":%d,"submissions":%d,"first":%f}`, lookups, submissions, first)
		case r.Method == "POST":
			io.Copy(io.Discard, r.Body)
			pause()
			w.WriteHeader(201)
			fmt.Fprintf(w, `{"itel_task_id":%d}`, atomic.AddInt64(&submissions, 1))
		default:
			w.WriteHeader(404)
		}
	}
	panic(http.ListenAndServe("127.0.0.1:"+os.Args[1], http.HandlerFunc(answer)))
}
