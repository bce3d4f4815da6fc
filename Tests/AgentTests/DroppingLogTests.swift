import Foundation
import Testing

@testable import stillpoint_agent

@Suite("The log")
struct DroppingLogTests {
    let directory: TemporaryDirectory

    init() throws { directory = try TemporaryDirectory() }

    private func open() throws -> (DroppingLog, FileHandle, String) {
        let path = directory.path + "/log"
        _ = FileManager.default.createFile(atPath: path, contents: nil)
        let handle = try #require(FileHandle(forWritingAtPath: path))
        return (DroppingLog(descriptor: handle.fileDescriptor), handle, path)
    }

    private func text(_ path: String) -> String {
        String(decoding: FileManager.default.contents(atPath: path) ?? Data(), as: UTF8.self)
    }

    @Test("nothing is written to a file while anything is held, and everything afterwards")
    func pause() async throws {
        let (log, handle, path) = try open()
        log.append("before\n")
        #expect(await eventually { text(path) == "before\n" })
        log.pause()
        log.pause()
        for number in 0..<100 { log.append("line \(number)\n") }
        log.resume()
        log.flush(atMostSeconds: 0.2)
        #expect(text(path) == "before\n")
        log.resume()
        #expect(await eventually { text(path).hasSuffix("line 99\n") })
        try handle.close()
    }

    @Test("what does not fit is dropped and counted, and nobody waits")
    func drop() async throws {
        let (log, handle, path) = try open()
        log.pause()
        let line = String(repeating: "x", count: 1_023) + "\n"
        for _ in 0..<2_000 { log.append(line) }
        log.resume()
        #expect(await eventually { text(path).contains("976 lines dropped") })
        #expect(text(path).utf8.count < DroppingLog.limitBytes + 100)
        try handle.close()
    }
}
