import API
import Foundation

/// How quantities are shown to people. Programs take `-o json`, which has exact numbers.
enum Show {
    /// `1.5 GiB`, `4 KiB`, `0 B`: three figures at most, rounded.
    static func bytes(_ count: UInt64) -> String { byteText(count) }

    /// `0.083 s`, `12.4 s`, `3 min 20 s`.
    static func seconds(_ seconds: Double) -> String {
        if seconds < 10 { return String(format: "%.3f s", seconds) }
        if seconds < 120 { return String(format: "%.1f s", seconds) }
        return span(seconds)
    }

    /// `64 µs`, `1.02 ms`, `2.1 s`: of a single command.
    static func latency(_ seconds: Double) -> String {
        if seconds < 1e-3 { return String(format: "%.0f µs", seconds * 1e6) }
        return seconds < 1 ? String(format: "%.3g ms", seconds * 1e3) : String(format: "%.1f s", seconds)
    }

    /// `40 s`, `3 min 20 s`, `5 h 12 min`, `8 d 3 h`.
    static func span(_ seconds: Double) -> String {
        let whole = Int(seconds.rounded())
        if whole < 60 { return "\(whole) s" }
        if whole < 3600 { return "\(whole / 60) min \(whole % 60) s" }
        if whole < 86_400 { return "\(whole / 3600) h \(whole % 3600 / 60) min" }
        return "\(whole / 86_400) d \(whole % 86_400 / 3600) h"
    }

    /// In the zone of this machine, to the second: `2026-11-21 14:03:59`.
    static func time(_ date: Date) -> String {
        var seconds = time_t(date.timeIntervalSince1970.rounded(.down))
        var parts = tm()
        localtime_r(&seconds, &parts)
        return String(
            format: "%04d-%02d-%02d %02d:%02d:%02d", parts.tm_year + 1900, parts.tm_mon + 1, parts.tm_mday,
            parts.tm_hour, parts.tm_min, parts.tm_sec)
    }

    /// As docs and options write it: `crash`, `file-system`, `application`.
    static func consistency(_ level: Consistency) -> String {
        switch level {
        case .crash: "crash"
        case .fileSystem: "file-system"
        case .application: "application"
        }
    }

    static func list(_ words: [String]) -> String { words.joined(separator: ", ") }

    static func yesNo(_ value: Bool) -> String { value ? "yes" : "no" }
}
