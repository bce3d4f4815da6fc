// swift-tools-version: 6.2
import PackageDescription

// A package of its own, so that fuzzing never burdens the product's build. `Product` is a link to ../Sources: the
// rooms are compiled here a second time, with libFuzzer's instrumentation.

let strict: [SwiftSetting] = [
    .swiftLanguageMode(.v6),
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("MemberImportVisibility"),
    .enableUpcomingFeature("InternalImportsByDefault"),
    .unsafeFlags(["-enable-testing"]),
]

let nio: [Target.Dependency] = [
    .product(name: "NIOCore", package: "swift-nio"),
    .product(name: "NIOPosix", package: "swift-nio"),
]

func fuzzer(_ name: String) -> Target {
    .executableTarget(
        name: "Fuzz\(name)", dependencies: ["BlockIO", "SCSI", "ISCSI"] + nio, path: name,
        swiftSettings: strict + [.unsafeFlags(["-parse-as-library"])])
}

let package = Package(
    name: "fuzzing",
    dependencies: [
        .package(url: "https://github.com/apple/swift-nio", from: "2.101.0"),
        .package(url: "https://github.com/apple/swift-crypto", from: "4.5.0"),
        .package(url: "https://github.com/apple/swift-log", from: "1.16.0"),
    ],
    targets: [
        .target(name: "CLinux", path: "Product/CLinux"),
        .target(name: "BlockIO", dependencies: ["CLinux"], path: "Product/BlockIO", swiftSettings: strict),
        .target(name: "SCSI", dependencies: ["BlockIO"], path: "Product/SCSI", swiftSettings: strict),
        .target(
            name: "ISCSI",
            dependencies: [
                "SCSI", "BlockIO", .product(name: "Crypto", package: "swift-crypto"),
                .product(name: "Logging", package: "swift-log"),
            ] + nio,
            path: "Product/ISCSI", swiftSettings: strict),
        .target(
            name: "BlockStore", dependencies: ["BlockIO", "CLinux"], path: "Product/BlockStore", swiftSettings: strict),
        .executableTarget(
            name: "FuzzStream", dependencies: ["BlockStore"], path: "Stream",
            swiftSettings: strict + [.unsafeFlags(["-parse-as-library"])]),
        fuzzer("Session"), fuzzer("Login"), fuzzer("Values"), fuzzer("Commands"), fuzzer("Lists"),
    ]
)
