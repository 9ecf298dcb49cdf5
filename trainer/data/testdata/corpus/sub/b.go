package sub

// Answer is what it is.
const Answer = 42
