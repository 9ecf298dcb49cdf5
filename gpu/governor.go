package gpu

import (
	"fmt"
	"time"
)

// Rules are an owner's conditions for lending a device. Zero fields take the defaults in brackets.
type Rules struct {
	Pause       float64       // core temperature in °C from which work pauses [83]
	PauseMemory float64       // memory temperature in °C from which work pauses [95]
	Cooler      float64       // °C below the pause temperature at which work may resume [8]
	Settle      time.Duration // for so long it must stay that cool [60 s]
	Schedule    Schedule      // when the device may work; empty is always
}

// Governor decides from telemetry and the time of day whether a device may work. It is a value: Next returns the
// governor after a measurement and changes nothing.
type Governor struct {
	rules     Rules
	hot       string    // what was too hot; empty when nothing was since it cooled down
	coolSince time.Time // while hot: since when every sensor is cool enough
	closed    bool      // outside the schedule
}

// NewGovernor returns a governor that lets a cool device work.
func NewGovernor(rules Rules) Governor {
	if rules.Pause == 0 {
		rules.Pause = 83
	}
	if rules.PauseMemory == 0 {
		rules.PauseMemory = 95
	}
	if rules.Cooler == 0 {
		rules.Cooler = 8
	}
	if rules.Settle == 0 {
		rules.Settle = 60 * time.Second
	}
	return Governor{rules: rules}
}

// Next takes a measurement into account; t.Time is its time in the owner's time zone.
func (g Governor) Next(t Telemetry) Governor {
	r := g.rules
	g.closed = !r.Schedule.Open(t.Time)
	above := func(v Reading, limit float64) bool { return v.Known && v.Value >= limit }
	switch {
	case above(t.Temperature, r.Pause):
		g.hot, g.coolSince = fmt.Sprintf("core at %.0f °C, limit %.0f °C", t.Temperature.Value, r.Pause), time.Time{}
	case above(t.MemoryTemperature, r.PauseMemory):
		g.hot, g.coolSince = fmt.Sprintf("memory at %.0f °C, limit %.0f °C", t.MemoryTemperature.Value, r.PauseMemory), time.Time{}
	case g.hot == "":
	case t.Temperature.Known && t.Temperature.Value > r.Pause-r.Cooler,
		t.MemoryTemperature.Known && t.MemoryTemperature.Value > r.PauseMemory-r.Cooler:
		g.coolSince = time.Time{}
	case g.coolSince.IsZero():
		g.coolSince = t.Time
	case t.Time.Sub(g.coolSince) >= r.Settle:
		g.hot, g.coolSince = "", time.Time{}
	}
	return g
}

// Paused says whether the device must rest now, and why in words.
func (g Governor) Paused() (reason string, paused bool) {
	switch {
	case g.hot != "":
		return g.hot, true
	case g.closed:
		return "outside the owner's schedule", true
	}
	return "", false
}
