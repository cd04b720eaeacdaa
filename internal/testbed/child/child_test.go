package child

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestProcess(t *testing.T) {
	t.Run("EndsByItself", func(t *testing.T) {
		p, err := Start(exec.Command("sh", "-c", "exit 3"), syscall.SIGKILL)
		if err != nil {
			t.Fatal(err)
		}
		<-p.Done()
		var exit *exec.ExitError
		if !errors.As(p.Err(), &exit) || exit.ExitCode() != 3 {
			t.Fatalf("got %v, want exit code 3", p.Err())
		}
		if err := p.Stop(t.Context(), syscall.SIGTERM); err != nil {
			t.Fatalf("stopping what has ended: %v", err)
		}
	})
	t.Run("StopKillsWhatDoesNotListen", func(t *testing.T) {
		cmd := exec.Command("sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		p, err := Start(cmd, syscall.SIGKILL)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		if err := p.Stop(ctx, syscall.SIGTERM); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v, want the deadline", err)
		}
		if p.Running() {
			t.Fatal("still running")
		}
	})
	t.Run("NoSuchProgram", func(t *testing.T) {
		if _, err := Start(exec.Command("/no/such/program"), syscall.SIGKILL); err == nil {
			t.Fatal("got no error")
		}
	})
}

// A parent that is killed cannot stop its children: the kernel must. The test runs itself as that
// parent.
func TestDiesWithParent(t *testing.T) {
	if os.Getenv("CHILD_TEST_PARENT") != "" {
		p, err := Start(exec.Command("sleep", "600"), syscall.SIGKILL)
		if err != nil {
			t.Fatal(err)
		}
		os.Stdout.WriteString(strconv.Itoa(p.PID()) + "\n")
		select {}
	}
	if _, err := os.Stat("/proc/self/stat"); err != nil {
		t.Skip("only Linux sends a signal to the children of a dead parent")
	}
	parent := exec.Command(os.Args[0], "-test.run=^TestDiesWithParent$")
	parent.Env = append(os.Environ(), "CHILD_TEST_PARENT=1")
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	// Threads come and go in a Go process; give them time, and the child must still be there.
	time.Sleep(200 * time.Millisecond)
	if !alive(pid) {
		t.Fatal("the child ended while its parent lived")
	}
	parent.Process.Kill()
	parent.Wait()
	for end := time.Now().Add(10 * time.Second); alive(pid); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("child %d outlived its parent", pid)
		}
	}
}

func alive(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(state, "Z") // a zombie that nobody reaps is dead enough
}
