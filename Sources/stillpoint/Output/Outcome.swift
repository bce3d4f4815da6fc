import API
import ArgumentParser
import Foundation

/// How a command ended, as scripts see it.
enum ExitStatus: Int32 {
    case done = 0
    /// The operation failed.
    case failed = 1
    /// The command line was wrong; nothing was asked of the node.
    case usage = 2
    case unreachable = 3
}

/// A command could not do what it was asked to.
struct CommandFailure: Error, Equatable {
    var status: ExitStatus
    /// What happened, to what.
    var message: String
    /// What to do next.
    var hint: String?

    init(_ message: String, hint: String? = nil, status: ExitStatus = .failed) {
        self.status = status
        self.message = message
        self.hint = hint
    }

    static func usage(_ message: String, hint: String? = nil) -> CommandFailure {
        CommandFailure(message, hint: hint, status: .usage)
    }
}

enum Outcome {
    /// Prints what there is to say about `error` (help to standard output, failures to standard error).
    ///
    /// - Returns: the exit code.
    static func report(_ error: any Error) -> Int32 {
        if let failure = explain(error) {
            Terminal.error("stillpoint: \(failure.message)")
            if let hint = failure.hint { Terminal.error("  \(hint)") }
            return failure.status.rawValue
        }
        let code = Stillpoint.exitCode(for: error)
        let message = Stillpoint.fullMessage(for: error)
        if code.isSuccess {
            if !message.isEmpty { print(message) }
            return ExitStatus.done.rawValue
        }
        if !message.isEmpty { Terminal.error(message) }
        return code == .validationFailure ? ExitStatus.usage.rawValue : code.rawValue
    }

    /// Nil for the argument parser's own errors, which know how to print themselves.
    static func explain(_ error: any Error) -> CommandFailure? {
        switch error {
        case let error as CommandFailure: error
        case let error as APIFailure: CommandFailure(sentence(error.message), hint: error.hint)
        case let error as NodeUnreachable:
            CommandFailure(
                error.description,
                hint: error.cause.contains("certificate")
                    ? "The node's authority (DATA/pki/ca.pem) is given with --ca-file; api.names in its configuration "
                        + "adds host names"
                    : "Is it running? Start it with: stillpoint serve. Another address is given with --api",
                status: .unreachable)
        case let error as UnexpectedAnswer:
            CommandFailure(error.description, hint: "Are this program and the node of the same version?")
        case let error as InvalidNodeSettings: .usage(error.message, hint: error.hint)
        case is ExitCode, is CleanExit, is ValidationError: nil
        case is CancellationError: CommandFailure("Interrupted")
        default: Stillpoint.exitCode(for: error) == .failure ? CommandFailure(String(describing: error)) : nil
        }
    }

    private static func sentence(_ text: String) -> String { text.hasSuffix(".") ? String(text.dropLast()) : text }
}

enum Terminal {
    static func error(_ line: String) {
        FileHandle.standardError.write(Data((line + "\n").utf8))
    }
}
