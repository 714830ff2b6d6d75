// usage: client LIBRARY, with URL and ROOM in the environment. Prints the library's version when all came back.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"time"

	coder "github.com/coder/websocket"
	gorilla "github.com/gorilla/websocket"
)

const (
	protocol = "barrage.v1.json"
	messages = 4
)

// Long enough that every library finds it worth compressing, and the same each time: the second refers back.
var text = strings.Repeat("弹幕 the same line of live chat, ", 40)

var published, arrived int

func publish() map[string]any {
	return map[string]any{"request": 10 + published, "publish": map[string]any{
		"channel": os.Getenv("ROOM"), "clientMessageId": fmt.Sprint("m", published), "type": "text", "text": text,
	}}
}

func heard(bytes []byte) (map[string]any, error) {
	var frame map[string]any
	if err := json.Unmarshal(bytes, &frame); err != nil {
		return nil, err
	}
	if frame["connected"] != nil {
		return map[string]any{"request": 2, "subscribe": map[string]any{"channel": os.Getenv("ROOM")}}, nil
	}
	if frame["subscribed"] != nil {
		return publish(), nil
	}
	if frame["published"] != nil {
		published++
		if published < messages {
			return publish(), nil
		}
		return nil, nil
	}
	if message, ok := frame["message"].(map[string]any); ok && message["text"] == text {
		arrived++
		return nil, nil
	}
	return nil, errors.New(string(bytes))
}

func talk(read func() ([]byte, error), write func([]byte) error) error {
	send := func(frame map[string]any) error {
		bytes, err := json.Marshal(frame)
		if err != nil {
			return err
		}
		return write(bytes)
	}
	if err := send(map[string]any{"request": 1, "connect": map[string]any{"name": "go"}}); err != nil {
		return err
	}
	for published < messages || arrived < messages {
		bytes, err := read()
		if err != nil {
			return err
		}
		answer, err := heard(bytes)
		if err != nil {
			return err
		}
		if answer != nil {
			if err := send(answer); err != nil {
				return err
			}
		}
	}
	return nil
}

func withGorilla() error {
	dialer := gorilla.Dialer{Subprotocols: []string{protocol}, EnableCompression: true}
	socket, _, err := dialer.Dial(os.Getenv("URL"), nil)
	if err != nil {
		return err
	}
	read := func() ([]byte, error) { _, bytes, err := socket.ReadMessage(); return bytes, err }
	return talk(read, func(bytes []byte) error { return socket.WriteMessage(gorilla.TextMessage, bytes) })
}

func withCoder() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	options := coder.DialOptions{Subprotocols: []string{protocol}, CompressionMode: coder.CompressionContextTakeover}
	socket, _, err := coder.Dial(ctx, os.Getenv("URL"), &options)
	if err != nil {
		return err
	}
	read := func() ([]byte, error) { _, bytes, err := socket.Read(ctx); return bytes, err }
	return talk(read, func(bytes []byte) error { return socket.Write(ctx, coder.MessageText, bytes) })
}

func main() {
	run, module := withGorilla, "github.com/gorilla/websocket"
	if os.Args[1] == "coder/websocket" {
		run, module = withCoder, "github.com/coder/websocket"
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	info, _ := debug.ReadBuildInfo()
	for _, dependency := range info.Deps {
		if dependency.Path == module {
			fmt.Println(strings.TrimPrefix(dependency.Version, "v"))
		}
	}
}
