package gpu

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// ErrSchedule reports a schedule that cannot be read.
var ErrSchedule = errors.New("cannot read schedule")

const minutesPerDay = 24 * 60

// Schedule says at which minutes of the week a device may work. The empty schedule is always open.
type Schedule struct {
	windows []window
}

// window is a span of minutes on some days; one that ends before it starts runs into the next day.
type window struct {
	days     [7]bool // of the start, Sunday first
	from, to int     // minutes of the day, to in (0, 1440]
}

var dayNames = map[string]int{"sun": 0, "mon": 1, "tue": 2, "wed": 3, "thu": 4, "fri": 5, "sat": 6}

// ParseSchedule reads windows such as "mon-fri 18:00-08:00, sat-sun 00:00-24:00" or "22:00-06:00" (every day).
// A window that ends before it starts runs into the next day. The empty text is the empty schedule.
func ParseSchedule(text string) (Schedule, error) {
	var s Schedule
	if strings.TrimSpace(text) == "" {
		return s, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		w, err := parseWindow(strings.ToLower(strings.TrimSpace(part)))
		if err != nil {
			return Schedule{}, fmt.Errorf("gpu: %w: %q: %w: write for example \"mon-fri 18:00-08:00, sat-sun 00:00-24:00\"",
				ErrSchedule, strings.TrimSpace(part), err)
		}
		s.windows = append(s.windows, w)
	}
	return s, nil
}

func parseWindow(text string) (window, error) {
	var w window
	hours := text
	if days, rest, found := strings.Cut(text, " "); found {
		first, last, span := strings.Cut(days, "-")
		if !span {
			last = first
		}
		from, ok := dayNames[first]
		to, ok2 := dayNames[last]
		if !ok || !ok2 {
			return w, fmt.Errorf("%q is no day or span of days", days)
		}
		for d := from; ; d = (d + 1) % 7 {
			w.days[d] = true
			if d == to {
				break
			}
		}
		hours = strings.TrimSpace(rest)
	} else {
		w.days = [7]bool{true, true, true, true, true, true, true}
	}
	from, to, _ := strings.Cut(hours, "-")
	var err error
	if w.from, err = parseMinute(from); err != nil {
		return w, err
	}
	if w.to, err = parseMinute(to); err != nil {
		return w, err
	}
	if w.to == 0 {
		w.to = minutesPerDay
	}
	if w.from == w.to || w.from == minutesPerDay {
		return w, errors.New("the window has no length; a whole day is 00:00-24:00")
	}
	return w, nil
}

// parseMinute reads "HH:MM" up to 24:00.
func parseMinute(text string) (int, error) {
	var h, m int
	if len(text) == 5 && text[2] == ':' {
		for _, i := range []int{0, 1, 3, 4} {
			if text[i] < '0' || text[i] > '9' {
				return 0, fmt.Errorf("%q is no time of day", text)
			}
		}
		h, m = int(text[0]-'0')*10+int(text[1]-'0'), int(text[3]-'0')*10+int(text[4]-'0')
		if m < 60 && (h < 24 || h == 24 && m == 0) {
			return h*60 + m, nil
		}
	}
	return 0, fmt.Errorf("%q is no time of day", text)
}

// Open reports whether the schedule allows work at t, in t's own time zone.
func (s Schedule) Open(t time.Time) bool {
	day, minute := int(t.Weekday()), t.Hour()*60+t.Minute()
	for _, w := range s.windows {
		overnight := w.to < w.from
		switch {
		case w.days[day] && minute >= w.from && (overnight || minute < w.to):
			return true
		case overnight && w.days[(day+6)%7] && minute < w.to:
			return true
		}
	}
	return len(s.windows) == 0
}
