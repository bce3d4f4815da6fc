/// Where a pool's times and random numbers come from. In a simulation both follow from the seed.
struct Surroundings: Sendable {
    /// Unix time in nanoseconds.
    var now: @Sendable () -> UInt64 = { unixNanoseconds() }
    var random: @Sendable () -> UInt64 = {
        var generator = SystemRandomNumberGenerator()
        return generator.next()
    }
}
