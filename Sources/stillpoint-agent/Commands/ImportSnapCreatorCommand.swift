import API
import ArgumentParser
import Foundation

struct ImportSnapCreatorCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "import-snapcreator",
        abstract: "Turn a Snap Creator configuration for KVM into one of this agent.",
        discussion: """
            Says of every setting whether it was carried over and, where it was not, why. Passwords in the file are \
            neither used nor shown. Without -o the configuration goes to standard output, the report to standard error.
            """)

    @Argument(help: "The configuration file (NAME=VALUE lines, APP_NAME=kvm).") var file: String

    @Option(
        name: .shortAndLong,
        help: ArgumentHelp(
            "Write agent.yaml and import.txt here; files that are there are kept.", valueName: "directory"))
    var output: String?

    func run() throws {
        let imported: SnapCreatorImport
        do {
            guard let handle = FileHandle(forReadingAtPath: file) else {
                throw ConfigurationError("it cannot be read")
            }
            defer { try? handle.close() }
            let data = try handle.read(upToCount: SnapCreatorFile.maximumBytes + 1) ?? Data()
            imported = try SnapCreatorImport(try SnapCreatorFile(data))
        } catch {
            throw CommandFailure.end("\(file): \(error)")
        }
        guard let output else {
            FileHandle.standardError.write(Data(imported.report.utf8))
            print(imported.yaml, terminator: "")
            return
        }
        do {
            try FileManager.default.createDirectory(atPath: output, withIntermediateDirectories: true)
            try write(imported.yaml, to: output + "/agent.yaml")
            try write(imported.report, to: output + "/import.txt")
        } catch let error as ConfigurationError {
            throw CommandFailure.end(error)
        } catch {
            throw CommandFailure.end("\(output): \(reasonText(error))")
        }
        print(imported.report, terminator: "")
    }

    private func write(_ text: String, to path: String) throws {
        let descriptor = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o644)
        guard descriptor >= 0 else {
            throw ConfigurationError("\(path) was not written: \(String(cString: strerror(errno)))")
        }
        let handle = FileHandle(fileDescriptor: descriptor, closeOnDealloc: true)
        try handle.write(contentsOf: Data(text.utf8))
    }
}
