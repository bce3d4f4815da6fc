import Foundation

/// A size for people: `1.5 GiB`, `4 KiB`, `0 B`; three figures at most, rounded.
public func byteText(_ count: UInt64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
    var value = Double(count)
    var unit = 0
    while value >= 1024, unit < units.count - 1 {
        value /= 1024
        unit += 1
    }
    if unit == 0 || value >= 99.95 || value == value.rounded() {
        return String(format: "%.0f %@", value, units[unit])
    }
    return String(format: value >= 9.995 ? "%.1f %@" : "%.2f %@", value, units[unit])
}

/// Why a file could not be read, written or made, in the system's words. Foundation's own sentence says neither.
public func reasonText(_ error: any Error) -> String {
    let whole = error as NSError
    let inner = (whole.userInfo[NSUnderlyingErrorKey] as? any Error).map { $0 as NSError }
    for candidate in [inner, whole].compactMap({ $0 }) where candidate.domain == NSPOSIXErrorDomain {
        return String(cString: strerror(Int32(candidate.code)))
    }
    return whole.localizedDescription
}
