/// A reproducible source of randomness (SplitMix64): the same seed gives the same history on every machine.
public struct SeededGenerator: RandomNumberGenerator, Sendable {
    private var state: UInt64

    public init(seed: UInt64) { state = seed }

    public mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94d0_49bb_1331_11eb
        return mixed ^ (mixed >> 31)
    }

    /// True in `percent` of 100 cases.
    public mutating func chance(_ percent: UInt64) -> Bool { next() % 100 < percent }

    /// A number from 0 to `bound - 1`.
    public mutating func below(_ bound: UInt64) -> UInt64 { next() % bound }
}
